"""Each likely cause is found where it is made on purpose, in the output's own dtype."""

from __future__ import annotations

import pytest
import torch

from kevolve_inductor.evaluate.causes import cause_of, cause_of_values

SQUARES = torch.empty(96, 64)


def exact_values(*shape):
    return torch.randn(shape or (96, 64), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def cause(output, exact, dtype=torch.float32, inputs=(SQUARES,)):
    output = output.to(dtype)
    wrong = output.double() != exact.to(dtype).double()
    wrong &= ~(output.isnan() & exact.isnan())
    return cause_of_values(output, exact, wrong, inputs)


def with_part(exact, value):
    changed = exact.clone()
    changed[32:64] = value if not torch.is_tensor(value) else value[32:64]
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda e: with_part(e, 0.0), "hold 0"),
        (lambda e: with_part(e, 3.0), "all hold 3"),
        (lambda e: with_part(e, float("nan")), "NaN where the reference is finite"),
        (lambda e: with_part(e, float("inf")), "overflow"),
        (lambda e: with_part(e, e.roll(-1, 1)), "value 1 after theirs along dimension 1"),
        (lambda e: with_part(e, e.roll(16, 0)), "value 16 before theirs along dimension 0"),
        (lambda e: e.T.contiguous().view(96, 64), "transposed"),
        (lambda e: e * 96, "96 times the reference (96, where 96"),
        (lambda e: with_part(e, e / 8), "0.125 times the reference (1/√64"),
        (lambda e: -e, "opposite sign"),
        (lambda e: with_part(e, e + 0.5), "off by +0.5"),
    ],
)  # fmt: skip
def test_causes_that_the_values_tell(spoil, words, dtype):
    exact = exact_values().to(dtype).double()
    found = cause(spoil(exact), exact, dtype)
    assert found is not None and words in found, found


def test_lost_and_infinite_values():
    exact = exact_values()
    exact[3], exact[5] = float("nan"), float("inf")
    lost, clamped = exact.nan_to_num(0.0, posinf=float("inf")), exact.clamp(max=3e38)
    assert "lost" in cause(lost, exact)
    assert "finite where the reference is infinite" in cause(clamped, exact)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x, a, w: x * a, "input 2: wrong elements miss it as a summand"),
        (lambda x, a, w: x * a + 2 * w, "input 2: wrong elements have it as a summand once too often"),
        (lambda x, a, w: (x * a + w) / a, "input 1: wrong elements miss it as a factor"),
        (lambda x, a, w: (x * a + w) * a, "input 1: wrong elements have it as a factor once too often"),
        (lambda x, a, w: x, "input 0: wrong elements hold its values"),
    ],
)
def test_an_input_that_is_left_out_is_named(spoil, words):
    x, a, w = exact_values(96, 64), exact_values(96, 1) + 4, exact_values(64)
    assert words in cause(spoil(x, a, w), x * a + w, inputs=[x, a, w, torch.zeros(7)])


def test_low_precision_is_told_by_the_size_of_the_errors():
    exact = exact_values()
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(shape, generator=generator) for shape in ((96, 256), (256, 64)))
    product = left.double() @ right.double()
    in_bfloat16 = left.bfloat16().double() @ right.bfloat16().double()
    in_tf32 = rounded_to_tf32(left).double() @ rounded_to_tf32(right).double()
    assert "rounded to bfloat16 before" in cause(exact.bfloat16(), exact)
    assert "operands were rounded to bfloat16" in cause(in_bfloat16, product)
    assert "TF32" in cause(in_tf32, product)
    # In a narrow type even a scale or an offset of this size is lost in rounding.
    assert "intermediate results" in cause(exact * 1.015, exact, torch.bfloat16)


def rounded_to_tf32(tensor):
    """To 10 bits of the mantissa, to nearest."""
    bits = tensor.view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def test_integers_are_off_by_one_or_from_elsewhere():
    exact = torch.arange(96 * 64).reshape(96, 64).remainder(17)
    shuffled = torch.randint(0, 17, (96, 64), generator=torch.Generator().manual_seed(0))
    assert "off by +1" in cause_of_values(exact + 1, exact, torch.ones(96, 64, dtype=torch.bool), [SQUARES])
    assert cause_of_values(shuffled, exact, shuffled != exact, [SQUARES]) is None


def test_too_few_values_say_nothing_and_unrelated_ones_neither():
    exact = exact_values()
    one = exact.clone()
    one[3, 3] += 1
    assert cause(one, exact) is None
    assert cause(exact_values(2, 96, 64)[1], exact) is None
    assert cause(exact_values()[0, 0] + 1, exact_values()[0, 0]) is None


def test_without_values_the_check_and_the_pattern_speak():
    assert "mask" in cause_of("guard bands", "out of bounds write")
    assert "never stored" in cause_of("two runs", "unwritten")
    assert cause_of("a check of its own", "shape or dtype") is None
