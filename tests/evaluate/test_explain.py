from __future__ import annotations

import typing

import pytest

from kevolve_inductor.evaluate.evaluation import (
    BuildFailed,
    Compiled,
    Crashed,
    Diagnosis,
    Evaluation,
    Limiter,
    Mismatch,
    Passed,
    Refused,
    ResourceFailed,
    TimedOut,
    from_json,
    to_json,
)
from kevolve_inductor.evaluate.explain import explain, explain_diagnosis
from kevolve_inductor.platforms.profile import Profile

PROFILE = (
    Profile.of("ncu", {"memory_share": 0.31, "occupancy": 0.2, "stalls": {"data from memory": 0.6}})
    | Profile.of("measured time", {"parallel_efficiency": 0.5, "threads": 2})
    | Profile.of("hardware counters", {"instructions": 3000.0, "cycles": 1000.0})
    | Profile.without("disassembly", "objdump is not installed")
)
DIAGNOSIS = Diagnosis("latency", "measured time", 2.5e9, 1e9, 0.25, 80, 4, 4096, 0.375, "registers", PROFILE)
PASSED = Passed(20.0, {"eager": 100.0, "inductor": 80.0}, 4.0, 3.9, 0.0, DIAGNOSIS, 0.1)
MISMATCH = Mismatch(
    "fp64 reference", "tail", "normal", 1, 36, 1000, (9, 96), 0.5, "columns from 64 on, of 100", "a mask"
)

EVALUATIONS = [
    (PASSED, ["20.0 µs", "4.00 times as fast as inductor", "Limited by waiting", "2.5 GB/s", "25% of the ceiling"]),
    (BuildFailed("triton", "NameError: x", 7), ["triton in line 7: NameError: x"]),
    (ResourceFailed("shared memory", 262_144, 232_448), ["limit of shared memory: needs 262,144 where 232,448", "1.13 times"]),
    (ResourceFailed("memory", 1, 0), ["1 where 0 are available."]),
    (MISMATCH, ["36 of 1000 elements, tail", "columns from 64", "(9, 96)", "off by 0.5", "Likely cause: a mask."]),
    (Mismatch("guard bands", "out of bounds write", "ties", 0, 0, 9, (), 0.0), ["out of bounds write", "wrong bound"]),
    (Crashed(11, "log"), ["signal 11 (SIGSEGV): log"]),
    (Crashed(None, "illegal access"), ["Fails at run time: illegal access"]),
    (TimedOut(30.0), ["30 s"]),
    (Refused("gate", "system"), ["'gate': system"]),
    (Compiled("gfx942", 64, 0, None, 0.5), ["gfx942: 64 registers, 0 spills, occupancy at most 50%; not run"]),
]  # fmt: skip


@pytest.mark.parametrize(("evaluation", "words"), EVALUATIONS, ids=[type(e).__name__ for e, _ in EVALUATIONS])
def test_every_outcome_is_said_in_words(evaluation, words):
    text = explain(evaluation)
    assert all(word in text for word in words), text
    assert from_json(to_json(evaluation)) == evaluation


def test_no_outcome_is_left_out():
    assert {type(evaluation) for evaluation, _ in EVALUATIONS} == set(typing.get_args(Evaluation))


def test_a_profiles_figures_stand_under_their_sources():
    text = explain_diagnosis(DIAGNOSIS)
    assert "The compiler reports 80 registers, 4 spills, 4096 bytes shared" in text
    assert "occupancy at most 38% because of registers" in text
    assert "By ncu: memory is used to 31%, 20% of the possible warps are resident." in text
    assert "By measured time: the threads' time is used to 50%." in text
    assert "By hardware counters: 3.00 instructions a cycle." in text
    assert "Warps wait for data from memory (60%)." in text
    assert "No disassembly: objdump is not installed." in text


@pytest.mark.parametrize("limiter", typing.get_args(Limiter))
def test_every_limiter_has_words(limiter):
    text = explain_diagnosis(Diagnosis(limiter, "measured time", 1e9, 1e9, 0.5))
    assert text.endswith("(From: measured time.)")
    assert "compiler reports" not in text


def test_evidence_of_other_versions_can_be_read():
    older = to_json(PASSED)
    for name in ("occupancy", "occupancy_limit", "profile"):
        del older["diagnosis"][name]
    assert from_json(older).diagnosis.occupancy is None
    newer = to_json(PASSED) | {"of_the_future": 1}
    newer["diagnosis"] |= {"of_the_future": 1}
    assert from_json(newer) == PASSED
    wrong = {name: value for name, value in to_json(MISMATCH).items() if name not in ("place", "likely_cause")}
    assert from_json(wrong).likely_cause is None
    assert "Likely cause: the last partial block" in explain(from_json(wrong))
