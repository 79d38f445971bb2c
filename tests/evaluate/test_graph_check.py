from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from kevolve_inductor.evaluate.evaluation import GraphVerdict
from kevolve_inductor.evaluate.graph_check import check, first_difference, time_mode
from kevolve_inductor.evaluate.job import GraphJob, OpenJob, WorkerSetup
from kevolve_inductor.evaluate.worker import Worker
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec, Workload
from kevolve_inductor.graph.swap import Swap
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms import use_build_folder
from kevolve_inductor.platforms.cpu_executor import CpuExecutor
from kevolve_inductor.testing.evaluators import row_sum_region, row_sum_workload


def test_rounding_is_no_difference_and_anything_else_is():
    x = torch.randn(100, 20)
    assert first_difference([x], [x * (1 + 1e-5)], False) is None
    assert "output 0" in first_difference([x], [x + 1.0], False)
    assert "output 1" in first_difference([x, x], [x, x[:50]], False)
    assert first_difference([x.half()], [x], False) is not None
    nan = torch.where(torch.rand(100, 20) < 0.1, float("nan"), x)
    assert first_difference([nan], [nan.clone()], False) is None
    assert first_difference([nan], [x], False) is not None


def test_a_few_elements_may_follow_another_tie_where_the_graph_selects():
    x, indices = torch.randn(1000, 10), torch.randint(9, (1000, 10))
    other, others = x.clone(), indices.clone()
    other[3] += 1
    others[3] += 1
    assert first_difference([x, indices], [other, others], True) is None
    assert "output 0" in first_difference([x, indices], [other, others], False)
    assert "output 0" in first_difference([indices], [indices + 1], True)
    assert first_difference([None, x], [None, x], False) is None


DOUBLED = """
extern "C" int64_t doubled(const float* __restrict in, float* __restrict out, int64_t n) {
  for (int64_t k = 0; k < 3 * n; k++) out[k] = 2 * in[k];
  return 0;
}
"""


def symbolic(buffer: bool):
    """Twice an input of any number of rows, and a buffer that is counted up if asked for."""
    rows, one = TensorSpec(("s0", 3), (3, 1), "float32", "cpu"), TensorSpec((1,), (1,), "float32", "cpu")
    twice = RegionNode("aten.mul.Tensor", ({"node": "i0"}, 2), {}, (rows,))
    shifted = RegionNode("aten.add.Tensor", ({"node": "n0"}, 1), {}, (rows,))
    counted = RegionNode("aten.add.Tensor", ({"node": "i1"}, 1), {}, (one,))
    kept = RegionNode("aten.copy_.default", ({"node": "i1"}, {"node": "n2"}), {}, (one,))
    if not buffer:
        return Region((rows,), (twice, shifted), ("n1",), (("s0", 0, 0),))
    return Region((rows, one), (twice, shifted, counted, kept), ("n1", "n2"), (("s0", 0, 0),))


@pytest.fixture(autouse=True)
def own_build_folder():
    yield
    use_build_folder(None)


def job(buffer=False, source=DOUBLED):
    rows = TensorSpec(("s0", 3), (3, 1), "float32", "cpu")
    region = Region((rows,), (symbolic(False).nodes[0],), ("n0",), (("s0", 0, 0),))
    launch = Launch("doubled", (Argument("input", 0), Argument("output", 0), Argument("size", 0)))
    swap = Swap(Kernel("cpp", source, (launch,)), region, ("i0",), ("n0",))
    graph = symbolic(buffer)
    return GraphJob(graph, Workload((("s0", 700),), (None,) * len(graph.inputs)), (swap,))


def test_symbolic_sizes_and_updated_buffers(tmp_path):
    for buffer in (False, True):
        verdict = GraphVerdict(**check(job(buffer), CpuExecutor(), 0, tmp_path))
        assert verdict.correct, verdict.reason
        assert verdict.kevolve_us > 0
    wrong = GraphVerdict(**check(job(source=DOUBLED.replace("2 *", "3 *")), CpuExecutor(), 0, tmp_path))
    assert not wrong.correct and wrong.kevolve_us is None


def test_a_mode_is_timed_with_and_without_the_swaps(tmp_path):
    settings = {"coordinate_descent_tuning": True}
    times = time_mode(replace(job(), mode="tuned"), settings, CpuExecutor(), 0, tmp_path)
    assert all(time_us > 0 for time_us in times.values())
    wrong = job(source=DOUBLED.replace("2 *", "3 *"))
    times = time_mode(replace(wrong, mode="tuned"), settings, CpuExecutor(), 0, tmp_path)
    assert times["kevolve_us"] is None and times["kevolve_mode_us"] is None and times["mode_us"] > 0
    times = time_mode(replace(job(), swaps=(), mode="tuned"), {"no such setting": 1}, CpuExecutor(), 0, tmp_path)
    assert times["mode_us"] is None and times["inductor_us"] > 0


def test_values_that_cancel_keep_the_errors_of_what_they_were_made_from():
    exact = torch.randn(4000, 60)
    noise = 2e-3 * torch.randn(4000, 60)
    assert first_difference([exact.bfloat16()], [(exact + noise).bfloat16()], False) is None
    assert first_difference([100 * exact.bfloat16()], [100 * (exact + noise).bfloat16()], False) is None
    assert first_difference([exact.bfloat16()], [(exact + 100 * noise).bfloat16()], False) is not None


def test_a_graph_that_does_not_fit_is_not_measured(tmp_path):
    class Full(CpuExecutor):
        def free_bytes(self) -> int:
            return 10

    verdict = GraphVerdict(**check(job(), Full(), 0, tmp_path))
    assert verdict.correct and verdict.kevolve_us is None and "memory" in verdict.reason


def test_a_graph_has_the_memory_of_the_session_before_it(tmp_path):
    worker = Worker(WorkerSetup("cpu", str(tmp_path), 0, 0))
    worker.do(OpenJob("bench", row_sum_region(), row_sum_workload(), ("inductor",)))
    kept = [weakref.ref(worker._bench), weakref.ref(worker._executor._flushed)]
    assert worker.do(job())["correct"] and not any(ref() is not None for ref in kept)


def test_a_job_survives_the_pipe():
    from kevolve_inductor.evaluate.job import job_from_json, job_to_json

    assert job_from_json(job_to_json(job(), 1.0)) == job()
