"""The conformance suite of the evaluator, and a small region with kernels that anyone can judge.

Each check takes a function that makes a fresh evaluator for the platform under test, closes what it opened, and raises
``AssertionError``. Run every one of ``EVALUATOR_CHECKS``.
"""

from __future__ import annotations

from collections.abc import Callable

from ..evaluate.evaluation import Passed, Refused, from_json, to_json
from ..evaluate.evaluator import Evaluator
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


def check_needs_a_region(make: MakeEvaluator) -> None:
    evaluator = make()
    try:
        evaluator.evaluate(row_sum_kernel())
    except WorkerError:
        return
    finally:
        evaluator.close()
    raise AssertionError("a kernel was judged before any region was opened")


def check_judges_a_right_kernel(make: MakeEvaluator) -> None:
    evaluator = make()
    try:
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
    finally:
        evaluator.close()


def check_refuses_what_the_gate_refuses(make: MakeEvaluator) -> None:
    evaluator = make()
    try:
        evaluator.open(row_sum_region(), row_sum_workload())
        source = '#include <cstdlib>\nextern "C" int64_t row_sum(const float* in, float* out) { return system("true"); }'
        refused = evaluator.evaluate(row_sum_kernel(source))
        assert isinstance(refused, Refused), refused
        assert refused.check == "gate"
    finally:
        evaluator.close()


def check_goes_from_region_to_region(make: MakeEvaluator) -> None:
    evaluator = make()
    try:
        for _ in range(2):
            evaluator.open(row_sum_region(), row_sum_workload())
            assert isinstance(evaluator.evaluate(row_sum_kernel()), Passed)
    finally:
        evaluator.close()


def check_measures_a_graph(make: MakeEvaluator) -> None:
    evaluator = make()
    try:
        verdict = evaluator.check_graph(row_sum_region(), row_sum_workload(), ())
        assert verdict.correct, verdict.reason
        assert verdict.inductor_us is not None, verdict.reason
        assert verdict.kevolve_us is not None, verdict.reason
        assert verdict.inductor_us > 0 and verdict.kevolve_us > 0
    finally:
        evaluator.close()


def check_closes_twice(make: MakeEvaluator) -> None:
    evaluator = make()
    evaluator.close()
    evaluator.close()


EVALUATOR_CHECKS: tuple[Callable[[MakeEvaluator], None], ...] = (
    check_needs_a_region,
    check_judges_a_right_kernel,
    check_refuses_what_the_gate_refuses,
    check_goes_from_region_to_region,
    check_measures_a_graph,
    check_closes_twice,
)
