from __future__ import annotations

import subprocess
import sys

import pytest

from kevolve_inductor.evaluate.null import NullEvaluator
from kevolve_inductor.platforms.null import NullPlatform
from kevolve_inductor.testing.evaluators import (
    EVALUATOR_CHECKS,
    ROW_SUM_SOURCE,
    check_life_cycle,
    row_sum_kernel,
    row_sum_region,
    row_sum_workload,
)


@pytest.mark.parametrize("check", EVALUATOR_CHECKS, ids=lambda check: check.__name__)
def test_conformance(check):
    check(NullEvaluator())


def test_life_cycle():
    check_life_cycle(NullEvaluator)


def latencies(evaluator):
    evaluator.open(row_sum_region(), row_sum_workload())
    return [evaluator.evaluate(row_sum_kernel(ROW_SUM_SOURCE + "\n" * k)).latency_us for k in range(20)]


def test_latency_follows_from_text_and_seed_in_any_process():
    here = latencies(NullEvaluator(3))
    assert here == latencies(NullEvaluator(3)) != latencies(NullEvaluator(4))
    assert min(here) < 100 < max(here)
    code = (
        "from kevolve_inductor.evaluate.null import NullEvaluator\n"
        "from kevolve_inductor.testing.evaluators import *\n"
        "e = NullEvaluator(3); e.open(row_sum_region(), row_sum_workload())\n"
        "print([e.evaluate(row_sum_kernel(ROW_SUM_SOURCE + '\\n' * k)).latency_us for k in range(20)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(here), done.stderr


def test_distortion_turns_round_who_is_faster():
    plain = latencies(NullEvaluator())
    turned = latencies(NullEvaluator(distortion=lambda kernel, latency_us: 1e4 / latency_us))
    assert sorted(range(20), key=plain.__getitem__) == sorted(range(20), key=turned.__getitem__)[::-1]


def test_the_null_platform_is_the_same_everywhere():
    assert NullPlatform().target() == NullPlatform().target()
    assert NullPlatform().available() is None
    assert NullPlatform().ceilings().bytes_per_s > 0
