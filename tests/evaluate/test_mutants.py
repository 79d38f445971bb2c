"""Right kernels with one small thing wrong do not pass."""

from __future__ import annotations

from collections import Counter

import pytest

from kevolve_inductor.exc import CompilerMissingError
from kevolve_inductor.platforms.cpp_compiler import find_compiler
from tests.evaluate.mutants import corpus_subjects, family_subjects, judge_all, mutants_of, sample

# The others lose only a fast way or move a block's border.
LEAST_KILLED = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        find_compiler()
    except CompilerMissingError as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("mutants")


def test_mutants_of_plain_kernels_do_not_pass(folder):
    plain = [subject for subject in corpus_subjects() if subject.name.endswith(": right")]
    verdicts = list(judge_all(sample(plain, 25), folder))
    survived = [verdict.mutant for verdict in verdicts if verdict.outcome == "survived"]
    missed = [m.difference() for m in survived]
    assert not missed, "\n\n".join(missed)
    assert sum(verdict.outcome == "killed" for verdict in verdicts) >= 21


def test_mutants_of_the_families_kernels_do_not_pass(folder):
    subjects = family_subjects()
    verdicts = list(judge_all(sample(subjects, 3 * len(subjects)), folder))
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    missed = "\n\n".join(verdict.mutant.difference() for verdict in verdicts if verdict.outcome == "survived")
    assert not missed, missed
    assert outcomes["killed"] >= LEAST_KILLED * len(verdicts)
    killed = {verdict.mutant.subject.name for verdict in verdicts if verdict.outcome == "killed"}
    assert killed == {subject.name for subject in subjects}


def test_a_mutant_differs_in_one_line_that_is_no_directive():
    operators = Counter()
    for subject in corpus_subjects():
        before = subject.kernel.source.splitlines()
        for mutant in mutants_of(subject):
            after = mutant.kernel.source.splitlines()
            changed = [old for old, new in zip(before, after, strict=True) if old != new]
            assert len(changed) == 1 and not changed[0].startswith("#"), mutant.difference()
            operators[mutant.operator] += 1
    assert len(operators) >= 20


def test_a_sample_is_the_same_for_the_same_seed_and_takes_every_subject():
    subjects = corpus_subjects()
    first, again = (sample(subjects, 100, seed=3) for _ in range(2))
    assert [mutant.kernel.digest for mutant in first] == [mutant.kernel.digest for mutant in again]
    assert len({mutant.subject.name for mutant in first}) == len(subjects)
