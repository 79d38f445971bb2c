from __future__ import annotations

import pytest
import torch

from kevolve_inductor.evaluate.patterns import find_pattern


def mask(shape, *wrong):
    made = torch.zeros(shape, dtype=torch.bool)
    for index in wrong:
        made[index] = True
    return made


def run(first, last):
    return slice(first, last)


ALL = slice(None)


@pytest.mark.parametrize(
    ("wrong", "pattern", "words"),
    [
        (mask((7, 9), ALL), "everything", "all"),
        (mask((500,), run(490, None)), "tail", "from 490"),
        (mask((500,), run(448, None)), "tail", "from 448"),
        (mask((500,), 499), "tail", "from 499"),
        (mask((100, 64), run(96, None)), "tail", "rows from 96"),
        (mask((100, 100), (ALL, run(64, None))), "tail", "columns from 64"),
        (mask((100, 100), (run(64, None), run(64, None))), "tail", "from 64"),
        (mask((100, 64), 3), "one row", "row 3"),
        (mask((2, 50, 64), (1, 3)), "one row", "row (1, 3)"),
        (mask((100, 64), 3, 50, 77), "rows", "3 of 100"),
        (mask((4, 10, 64), 2), "rows", "(2, 0) and (2, 9)"),
        (mask((100, 64), (ALL, 5)), "one column", "column 5"),
        (mask((100, 64), (ALL, 3), (ALL, 9), (ALL, 20)), "columns", "3 of 64"),
        (mask((500,), slice(3, None, 8)), "every n-th", "every 8 elements, from 3"),
        (mask((100, 64), slice(1, None, 4)), "every n-th", "every 4 rows"),
        (mask((100, 64), (ALL, slice(0, None, 2))), "every n-th", "every 2 columns"),
        (mask((500,), run(128, 192), run(256, 320)), "whole tiles", "64 elements"),
        (mask((100, 64), run(32, 64)), "whole tiles", "32×64"),
        (mask((100, 100), (run(32, 64), run(32, 64))), "whole tiles", "32×32"),
        (mask((4, 100, 100), (1, run(32, 48), run(64, None)), (3, run(0, 16), run(0, 64))), "whole tiles", "16×64"),
        (mask((100, 64), (3, 7), (50, 9), (77, 60)), "scattered", "(3, 7) and (77, 60)"),
        (mask((400,), run(324, None)), "tail", "from 324"),
        (mask((128,), run(64, None)), "whole tiles", "64 elements"),
        (mask((120, 50), (ALL, run(1, None))), "columns", "49 of 50 columns between 1 and 49"),
        (mask((), ()), "everything", "all"),
    ],
)  # fmt: skip
def test_patterns(wrong, pattern, words):
    place = find_pattern(wrong)
    assert (place.pattern, words in place.words) == (pattern, True), place


def test_a_trailing_dimension_of_one_is_no_row():
    assert find_pattern(mask((500, 1), run(490, None))).pattern == "tail"


def test_a_few_elements_of_a_tile_may_be_right_by_chance():
    wrong = mask((128, 128), (run(32, 64), run(64, 96)))
    wrong[40, 70] = wrong[50, 80] = False
    assert "32×32" in find_pattern(wrong).words


def test_what_is_wrong_but_for_a_few_elements_is_everything():
    wrong = torch.rand(120, 50, generator=torch.Generator().manual_seed(0)) < 0.97
    assert find_pattern(wrong).pattern == "everything"


def test_noise_is_scattered_and_large_outputs_are_looked_at_in_part():
    noise = torch.rand(3000, 3000, generator=torch.Generator().manual_seed(0)) < 0.05
    assert find_pattern(noise).pattern == "scattered"
    large = mask((3000, 3000), (run(2048, 2112), run(128, 256)))
    assert "64×128, the first at (2048, 128)" in find_pattern(large).words
