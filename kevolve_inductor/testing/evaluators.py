"""The conformance suite of the evaluator, and a small region with kernels that anyone can judge.

Each of ``EVALUATOR_CHECKS`` takes an evaluator for the platform under test, opens what it needs (so one evaluator may
serve them all, in any order) and raises ``AssertionError``; ``check_life_cycle`` takes a function that makes a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable

from ..evaluate.evaluation import Passed, Refused, from_json, to_json
from ..evaluate.evaluator import Evaluator
from ..evaluate.sanitizers.sanitizers import Sanitized
from ..exc import WorkerError
from ..graph.region import Region, RegionNode, TensorSpec, Workload
from ..kernel import Argument, Kernel, Launch

MakeEvaluator = Callable[[], Evaluator]

ROWS, WIDTH = 500, 100

# Sums of the rows of a matrix, in the order that vectorises.
ROW_SUM_SOURCE = """
#include <cstdint>
extern "C" int64_t row_sum(const float* __restrict in, float* __restrict out) {
#pragma omp parallel for
  for (int64_t row = 0; row < ROWS; row++) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < WIDTH; k++) sum += in[row * WIDTH + k];
    out[row] = sum;
  }
  return 0;
}
""".replace("ROWS", str(ROWS)).replace("WIDTH", str(WIDTH))


def row_sum_region(device: str = "cpu") -> Region:
    matrix = TensorSpec((ROWS, WIDTH), (WIDTH, 1), "float32", device)
    row = TensorSpec((ROWS,), (1,), "float32", device)
    return Region((matrix,), (RegionNode("aten.sum.dim_IntList", ({"node": "i0"}, [1]), {}, (row,)),), ("n0",))


def row_sum_workload() -> Workload:
    return Workload((), (None,))


def row_sum_kernel(source: str = ROW_SUM_SOURCE) -> Kernel:
    """The right kernel for :func:`row_sum_region`, or one with another ``source``."""
    return Kernel("cpp", source, (Launch("row_sum", (Argument("input", 0), Argument("output", 0))),))


def check_life_cycle(make: MakeEvaluator) -> None:
    evaluator = make()
    for _ in range(2):
        try:
            evaluator.evaluate(row_sum_kernel())
        except WorkerError:
            evaluator.close()
            continue
        raise AssertionError("a kernel was judged while no region was open")
    evaluator.close()


def check_judges_a_right_kernel(evaluator: Evaluator) -> None:
    baselines = evaluator.open(row_sum_region(), row_sum_workload())
    assert baselines.times_us, baselines.failures
    assert all(time_us > 0 for time_us in baselines.times_us.values())
    evaluator.prepare((row_sum_kernel(),))
    passed = evaluator.evaluate(row_sum_kernel())
    assert isinstance(passed, Passed), passed
    assert passed.latency_us > 0
    assert 0 < passed.speedup_low <= passed.speedup
    assert set(passed.baselines_us) == set(baselines.times_us)
    assert passed.max_error >= 0
    assert from_json(to_json(passed)) == passed


def check_refuses_what_the_gate_refuses(evaluator: Evaluator) -> None:
    evaluator.open(row_sum_region(), row_sum_workload())
    source = '#include <cstdlib>\nextern "C" int64_t row_sum(const float* in, float* out) { return system("true"); }'
    refused = evaluator.evaluate(row_sum_kernel(source))
    assert isinstance(refused, Refused), refused
    assert refused.check == "gate"


def check_measures_a_graph(evaluator: Evaluator) -> None:
    evaluator.open(row_sum_region(), row_sum_workload())
    verdict = evaluator.check_graph(row_sum_region(), row_sum_workload(), ())
    assert verdict.correct, verdict.reason
    assert verdict.inductor_us is not None and verdict.kevolve_us is not None, verdict.reason
    assert verdict.inductor_us > 0 and verdict.kevolve_us > 0
    assert isinstance(evaluator.evaluate(row_sum_kernel()), Passed)


def check_sanitizes_a_right_kernel(evaluator: Evaluator) -> None:
    evaluator.open(row_sum_region(), row_sum_workload())
    sanitized = evaluator.sanitize(row_sum_kernel())
    assert isinstance(sanitized, Sanitized), sanitized
    assert all(isinstance(text, str) and text for text in sanitized.to_json().values())


EVALUATOR_CHECKS: tuple[Callable[[Evaluator], None], ...] = (
    check_judges_a_right_kernel,
    check_refuses_what_the_gate_refuses,
    check_measures_a_graph,
    check_sanitizes_a_right_kernel,
)
