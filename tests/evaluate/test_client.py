"""The judge against kernels that are right, wrong, slow, or worse."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch

from kevolve_inductor.evaluate import client
from kevolve_inductor.evaluate.client import WorkerEvaluator
from kevolve_inductor.evaluate.evaluation import (
    BuildFailed,
    Compiled,
    Crashed,
    Mismatch,
    Passed,
    Refused,
    ResourceFailed,
    TimedOut,
)
from kevolve_inductor.evaluate.inputs import generate
from kevolve_inductor.exc import WorkerError
from kevolve_inductor.graph.region import InputRange, Region, RegionNode, TensorSpec, Workload
from kevolve_inductor.graph.swap import Swap
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.hip import HipPlatform
from kevolve_inductor.testing.evaluators import (
    EVALUATOR_CHECKS,
    ROW_SUM_SOURCE,
    check_life_cycle,
    row_sum_kernel,
    row_sum_region,
    row_sum_workload,
)

LIMIT_S = 10.0
END = "  return 0;\n}"


def spoiled(old, new):
    assert old in ROW_SUM_SOURCE
    return row_sum_kernel(ROW_SUM_SOURCE.replace(old, new))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def evaluator(folder):
    with WorkerEvaluator(CpuPlatform(), folder, limit_s=LIMIT_S) as made:
        made.open(row_sum_region(), row_sum_workload())
        yield made


@pytest.mark.parametrize("check", EVALUATOR_CHECKS, ids=lambda check: check.__name__)
def test_conformance(check, evaluator):
    check(evaluator)


def test_life_cycle(folder):
    check_life_cycle(lambda: WorkerEvaluator(CpuPlatform(), folder))


def test_a_right_kernel_passes_with_reasons(evaluator):
    passed = evaluator.evaluate(row_sum_kernel())
    assert isinstance(passed, Passed)
    assert set(passed.baselines_us) == {"eager", "inductor"}
    assert passed.max_error < 1e-1
    assert passed.diagnosis.achieved_bytes_per_s == pytest.approx(4 * (50_000 + 500) / (passed.latency_us / 1e6))
    assert passed.diagnosis.achieved_flops_per_s > 0


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("row < 500", "row < 499", "unwritten"),
        ("k < 100", "k < 99", "everything"),
        (END, "  out[500] = 0;\n" + END, "out of bounds write"),
        (END, "  const_cast<float*>(in)[7] += 1;\n" + END, "input changed"),
        ("out[row] = sum", "out[row] = row < 490 ? sum : sum + 1", "tail"),
        ("out[row] = sum", "out[row] = row == 77 ? 0 : sum", "scattered"),
        ("out[row] = sum", "out[row] = sum + float(uintptr_t(out) % 4096) + out[row]", "not repeatable"),
    ],
)  # fmt: skip
def test_a_wrong_kernel_is_told_what_is_wrong(evaluator, old, new, pattern):
    mismatch = evaluator.evaluate(spoiled(old, new))
    assert isinstance(mismatch, Mismatch), mismatch
    assert mismatch.pattern == pattern
    assert mismatch.total_elements in (500, 50_000)


def test_a_kernel_that_ignores_nan_is_wrong(evaluator):
    mismatch = evaluator.evaluate(spoiled("out[row] = sum", "out[row] = sum == sum ? sum : 0.0f"))
    assert isinstance(mismatch, Mismatch)
    assert (mismatch.pattern, mismatch.inputs) == ("nan placement", "special")


def test_what_does_not_compile_says_where(evaluator):
    failed = evaluator.evaluate(spoiled("float sum = 0;", "float sum = missing;"))
    assert isinstance(failed, BuildFailed)
    assert failed.line == ROW_SUM_SOURCE.splitlines().index("    float sum = 0;") + 1


def test_a_crash_is_an_outcome_and_the_next_kernel_is_judged(evaluator):
    crashing = spoiled(END, "  *(volatile int*)nullptr = 1;\n" + END)
    evaluator.prepare((crashing, row_sum_kernel()))
    crashed = evaluator.evaluate(crashing)
    assert isinstance(crashed, Crashed)
    assert crashed.signal == 11
    assert isinstance(evaluator.evaluate(row_sum_kernel()), Passed)


def test_a_hang_ends_within_its_limit_and_the_next_kernel_is_judged(evaluator):
    start = time.monotonic()
    endless = evaluator.evaluate(spoiled(END, "  volatile int on = 1;\n  while (on) {}\n" + END))
    assert endless == TimedOut(LIMIT_S)
    assert time.monotonic() - start < 2 * LIMIT_S + 5
    assert isinstance(evaluator.evaluate(row_sum_kernel()), Passed)


def test_a_slow_kernel_passes_with_a_low_speedup(evaluator):
    slow = spoiled("    float sum = 0;", "    volatile float wait = 0;\n"
                   "    for (int w = 0; w < 80000; w++) wait = wait + 1;\n    float sum = 0;")  # fmt: skip
    passed = evaluator.evaluate(slow)
    assert isinstance(passed, Passed)
    assert passed.speedup_low <= passed.speedup < 0.5


def test_a_kernel_that_reports_an_index_where_there_is_none_is_wrong(evaluator):
    mismatch = evaluator.evaluate(spoiled("return 0;", "return 1;"))
    assert isinstance(mismatch, Mismatch)
    assert mismatch.check == "index out of range"


def test_in_a_large_region_a_kernel_is_only_timed_until_it_is_to_be_decided(evaluator, monkeypatch):
    monkeypatch.setattr(client, "_ONLY_TIMED_BYTES", 1)
    wrong = spoiled("out[row] = sum", "out[row] = 2 * sum")
    timed = evaluator.evaluate(wrong)
    assert isinstance(timed, Passed) and not timed.complete
    assert isinstance(evaluator.evaluate(wrong, surely=True), Mismatch)
    assert isinstance(evaluator.evaluate(wrong, outside=True), Mismatch | Refused)


def test_a_kernel_that_takes_sizes_is_judged_at_others_than_it_is_tuned_for(folder):
    matrix = TensorSpec(("s0", 100), (100, 1), "float32", "cpu")
    row = TensorSpec(("s0",), (1,), "float32", "cpu")
    node = RegionNode("aten.sum.dim_IntList", ({"node": "i0"}, [1]), {}, (row,))
    region = Region((matrix,), (node,), ("n0",), (("s0", 0, 0),))
    source = ROW_SUM_SOURCE.replace("float* __restrict out)", "float* __restrict out, int64_t s0)")
    arguments = (Argument("input", 0), Argument("output", 0), Argument("size", 0))
    right = Kernel("cpp", source.replace("row < 500", "row < s0"), (Launch("row_sum", arguments),))
    for_fours = replace(right, source=source.replace("row < 500", "row < s0 / 4 * 4"))
    for_the_hint = replace(right, source=source.replace("row < 500", "row < 500 + 0 * s0"))
    with WorkerEvaluator(CpuPlatform(), folder, limit_s=LIMIT_S) as other:
        other.open(region, Workload((("s0", 500),), (None,)))
        assert isinstance(other.evaluate(right), Passed)
        wrong = other.evaluate(for_fours)
        assert isinstance(wrong, Mismatch) and wrong.pattern == "unwritten" and wrong.inputs == "normal@2"
        assert isinstance(other.evaluate(for_the_hint), Mismatch | Crashed)


def test_a_finalist_is_judged_on_other_seeds_as_well(folder):
    # Right for the first seed of every distribution only: it has learnt a value that one of the later ones holds.
    values = generate(row_sum_region(), row_sum_workload(), "uniform#2", 0, torch.device("cpu"))[0]
    lucky = spoiled("out[row] = sum", f"out[row] = in[0] == {float(values[0, 0])!r}f ? 0.0f : sum")
    with WorkerEvaluator(CpuPlatform(), folder, limit_s=LIMIT_S, seeds_s=None) as other:
        other.open(row_sum_region(), row_sum_workload())
        assert isinstance(other.evaluate(lucky), Passed)
        caught = other.evaluate(lucky, beat=0.0, surely=True)
        assert isinstance(caught, Mismatch) and caught.inputs == "uniform#2"


LOOK_UP = """
#include <cstdint>
extern "C" int64_t look_up(const float* __restrict table, const int64_t* __restrict at, float* __restrict out) {
  int64_t bad = 0;
  for (int64_t k = 0; k < 3000; k++) {
    bool ok = uint64_t(at[k]) < 50;
    bad |= !ok;
    out[k] = table[ok ? at[k] : 0];
  }
  return bad;
}
"""


def test_indices_out_of_range_must_be_reported_and_closing_ends_every_process(folder):
    table, at = TensorSpec((50,), (1,), "float32", "cpu"), TensorSpec((3000,), (1,), "int64", "cpu")
    out = TensorSpec((3000,), (1,), "float32", "cpu")
    node = RegionNode("aten.index_select.default", ({"node": "i0"}, 0, {"node": "i1"}), {}, (out,))
    region, workload = Region((table, at), (node,), ("n0",)), Workload((), (None, InputRange(0, 49)))
    arguments = (Argument("input", 0), Argument("input", 1), Argument("output", 0))
    kernel = Kernel("cpp", LOOK_UP, (Launch("look_up", arguments),))
    before = _children()
    with WorkerEvaluator(CpuPlatform(), folder, limit_s=LIMIT_S) as other:
        other.open(region, workload)
        assert len(_children() - before) >= 2
        assert isinstance(other.evaluate(kernel), Passed)
        silent = other.evaluate(replace(kernel, source=LOOK_UP.replace("return bad", "return 0")))
        assert isinstance(silent, Mismatch)
        assert (silent.check, silent.inputs) == ("index out of range", "beyond")
    assert not _children() - before
    with pytest.raises(WorkerError):
        other.evaluate(kernel)


def softmax_graph():
    """A product, the softmax of its rows, and the sums of the product's rows."""
    x, w = TensorSpec((64, 32), (32, 1), "float32", "cpu"), TensorSpec((32, 100), (100, 1), "float32", "cpu")
    wide, row = TensorSpec((64, 100), (100, 1), "float32", "cpu"), TensorSpec((64,), (1,), "float32", "cpu")
    nodes = (
        RegionNode("aten.mm.default", ({"node": "i0"}, {"node": "i1"}), {}, (wide,)),
        RegionNode("aten.exp.default", ({"node": "n0"},), {}, (wide,)),
        RegionNode("aten.sum.dim_IntList", ({"node": "n0"}, [1]), {}, (row,)),
    )
    return Region((x, w), nodes, ("n1", "n2")), Workload((), (None, None))


def row_sum_swap(source):
    wide, row = TensorSpec((64, 100), (100, 1), "float32", "cpu"), TensorSpec((64,), (1,), "float32", "cpu")
    node = RegionNode("aten.sum.dim_IntList", ({"node": "i0"}, [1]), {}, (row,))
    return Swap(row_sum_kernel(source.replace("500", "64")), Region((wide,), (node,), ("n0",)), ("n0",), ("n2",))


def test_a_whole_graph_is_measured_with_its_swaps(evaluator):
    graph, workload = softmax_graph()
    verdict = evaluator.check_graph(graph, workload, (row_sum_swap(ROW_SUM_SOURCE),))
    assert verdict.correct, verdict.reason
    assert verdict.inductor_us > 0 and verdict.kevolve_us > 0
    wrong = evaluator.check_graph(graph, workload, (row_sum_swap(ROW_SUM_SOURCE.replace("= sum;", "= 2 * sum;")),))
    assert not wrong.correct
    assert "output 1" in wrong.reason
    crashing = ROW_SUM_SOURCE.replace(END, "  *(volatile int*)nullptr = 1;\n" + END)
    ended = evaluator.check_graph(graph, workload, (row_sum_swap(crashing),))
    assert not ended.correct and ended.inductor_us is None
    assert isinstance(evaluator.evaluate(row_sum_kernel()), Passed)


def test_a_graph_that_cannot_be_rebuilt_says_nothing_against_its_swaps(evaluator):
    graph, workload = softmax_graph()
    strange = replace(graph, nodes=(*graph.nodes, RegionNode("aten.no_such.default", (), {}, graph.inputs)))
    verdict = evaluator.check_graph(strange, workload, ())
    assert verdict.correct and verdict.inductor_us is None and "no_such" in verdict.reason


def _children() -> set[int]:
    """Live child processes of this one."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z" and int(fields[1]) == os.getpid():
                found.add(int(entry))
    return found


TRITON_SUM = """
@triton.jit
def row_sum(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * WIDTH + at, mask=at < WIDTH, other=0.0)
    tl.store(out + row, tl.sum(value, 0))
"""


def triton_kernel(source=TRITON_SUM, grid="500"):
    arguments = (Argument("input", 0), Argument("output", 0))
    return Kernel("triton", source, (Launch("row_sum", arguments, (grid,), (("WIDTH", 100), ("BLOCK", 128))),))


def test_for_a_gpu_that_is_not_here_kernels_are_compiled(tmp_path):
    pytest.importorskip("triton")
    with WorkerEvaluator(HipPlatform("gfx942"), tmp_path, limit_s=60) as evaluator:
        baselines = evaluator.open(row_sum_region("cuda"), row_sum_workload())
        assert baselines.times_us == {} and "compiled" in baselines.failures["eager"]
        evaluator.prepare((triton_kernel(),))
        compiled = evaluator.evaluate(triton_kernel())
        assert isinstance(compiled, Compiled)
        assert compiled.target == "gfx942" and compiled.registers > 0
        assert isinstance(evaluator.evaluate(triton_kernel(TRITON_SUM.replace("value, 0", "value, 5"))), BuildFailed)


@pytest.mark.gpu
def test_triton_kernels_on_the_gpu(tmp_path):
    from kevolve_inductor.platforms.cuda import CudaPlatform

    with WorkerEvaluator(CudaPlatform(), tmp_path, limit_s=60) as evaluator:
        baselines = evaluator.open(row_sum_region("cuda"), row_sum_workload())
        assert set(baselines.times_us) == {"eager", "inductor"}, baselines.failures
        short = triton_kernel(grid="499")
        broken = triton_kernel(TRITON_SUM.replace("out + row,", "out + row.to(tl.int64) * 1000000000,"))
        evaluator.prepare((triton_kernel(), short, broken))
        passed = evaluator.evaluate(triton_kernel())
        assert isinstance(passed, Passed), passed
        assert passed.diagnosis.registers > 0
        assert evaluator.evaluate(short).pattern == "unwritten"
        assert isinstance(evaluator.evaluate(broken), Crashed)
        tall = replace(triton_kernel().launches[0], grid=("1", "70000"))
        limited = evaluator.evaluate(replace(triton_kernel(), launches=(tall,)))
        assert isinstance(limited, ResourceFailed) and limited.available == 65_535
        assert isinstance(evaluator.evaluate(triton_kernel()), Passed)
        swap = Swap(triton_kernel(), row_sum_region("cuda"), ("i0",), ("n0",))
        verdict = evaluator.check_graph(row_sum_region("cuda"), row_sum_workload(), (swap,))
        assert verdict.correct and verdict.kevolve_us is not None, verdict.reason


def test_refusals_are_not_run(evaluator):
    refused = evaluator.evaluate(spoiled(END, '  system("true");\n' + END))
    assert isinstance(refused, Refused) and refused.check == "gate"
    assert "system" in refused.message


def test_nothing_is_left_on_the_thread_pool_of_this_process(evaluator):
    before = torch.get_num_threads()
    evaluator.evaluate(row_sum_kernel())
    assert torch.get_num_threads() == before


def test_what_happens_in_some_runs_only_is_found_by_repeating(evaluator):
    racing = ROW_SUM_SOURCE.replace(
        "  for (int64_t row", "  float shared = 0;\n#pragma omp parallel for\n  for (int64_t row", 1
    )
    racing = racing.replace("#pragma omp parallel for\n  float shared", "  float shared").replace(
        "out[row] = sum;", "shared += sum;\n    out[row] = sum;"
    ).replace(END, "  out[0] = shared;\n" + END)  # fmt: skip
    mismatch = evaluator.evaluate(row_sum_kernel(racing))
    assert isinstance(mismatch, Mismatch)
