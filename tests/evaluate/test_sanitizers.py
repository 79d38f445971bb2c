"""Each fault is found by the sanitizer that is there for it, and kernels without one pass."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kevolve_inductor.evaluate.evaluation import Refused
from kevolve_inductor.evaluate.job import WorkerSetup
from kevolve_inductor.evaluate.sanitizers import sanitizers
from kevolve_inductor.evaluate.sanitizers.sanitizers import Sanitized, sanitize, telling_inputs
from kevolve_inductor.evaluate.sanitizers.tool import Case, Clean, NotRun, run_bounded
from kevolve_inductor.exc import CompilerMissingError
from kevolve_inductor.graph.region import InputRange, Region, RegionNode, TensorSpec, Workload
from kevolve_inductor.kernel import Argument, Kernel, Launch, Workspace
from kevolve_inductor.platforms.cpp_compiler import find_compiler
from kevolve_inductor.testing.evaluators import row_sum_kernel, row_sum_region, row_sum_workload
from tests.evaluate.mutants import family_subjects

ADDRESS, THREAD, MEMORY = "address and undefined behaviour sanitizers", "thread sanitizer", "uninitialised memory"
HEAD = """#include <cstdint>
extern "C" int64_t run(const float* __restrict in, float* __restrict out, float* __restrict w) {
"""
IN, OUT, SCRATCH = (Argument(kind, 0) for kind in ("input", "output", "workspace"))


@pytest.fixture(autouse=True)
def compiler():
    try:
        return find_compiler()
    except CompilerMissingError as error:
        pytest.skip(str(error))


def kernel(body: str) -> Kernel:
    """A kernel for the region of row sums (500 rows of 100) with 64 floats of scratch memory ``w``."""
    source = f"{HEAD}{body}\nreturn 0;\n}}\n"
    return Kernel("cpp", source, (Launch("run", (IN, OUT, SCRATCH)),), (Workspace("float32", "64"),))


def sanitized(
    kernel: Kernel, folder: Path, inputs=("normal", "uniform"), limit_s=60.0, region=None, workload=None, threads=2
):
    setup = WorkerSetup("cpu", str(folder), threads, seed=0)
    case = Case(kernel, region or row_sum_region(), workload or row_sum_workload(), inputs, setup, limit_s)
    result = sanitize(case)
    if isinstance(result, Sanitized) and "cannot find -l" in str(result.to_json()):
        pytest.skip("the compiler comes without its sanitizers")
    return result


FAULTS = {
    "a read one element too far": (
        "for (int i = 0; i < 500; i++) {\nfloat sum = 0;\nfor (int k = 0; k <= 100; k++)\n"
        "sum += in[i * 100 + k];\nout[i] = sum;\n}",
        "address sanitizer", "heap-buffer-overflow, read of size 4 in line 6 (sum += in[i * 100 + k];)", "input 0",
    ),
    "a write one element too far": (
        "for (int i = 0; i <= 500; i++)\nout[i] = in[i];",
        "address sanitizer", "heap-buffer-overflow, write of size 4 in line 4 (out[i] = in[i];)", "output 0",
    ),
    "a read before the workspace": (
        "for (int i = 0; i < 64; i++) w[i] = 1;\nfor (int i = 0; i < 500; i++)\nout[i] = w[i % 65 - 1];",
        "address sanitizer", "heap-buffer-overflow, read of size 4 in line 5", "workspace 0",
    ),
    "a local array too short": (
        "float part[8] = {};\nfor (int i = 0; i < 500; i++)\npart[i % 9] += in[i];\n"
        "for (int i = 0; i < 500; i++) out[i] = part[i % 8];",
        "undefined behaviour sanitizer", "in line 5 (part[i % 9] += in[i];)", "",
    ),
    "vectors where single floats are aligned": (
        "typedef float V __attribute__((vector_size(32)));\nfor (int i = 0; i < 496; i += 8)\n"
        "*(V*)(out + i) = *(const V*)(in + i);",
        "undefined behaviour sanitizer", "misaligned address", "in line 5",
    ),
    "a shift as wide as the type": (
        "for (int i = 0; i < 500; i++)\nout[i] = float(1 << (i % 33));",
        "undefined behaviour sanitizer", "shift exponent 32 is too large", "in line 4",
    ),
    "a division by zero": (
        "for (int i = 0; i < 500; i++)\nout[i] = float(7 / (i % 3));",
        "undefined behaviour sanitizer", "division by zero", "in line 4",
    ),
    "an output that was not written": (
        "for (int i = 1; i < 500; i++) out[i] = in[i];\nout[0] = out[0] + 1;",
        MEMORY, "byte 0 of output 0", "",
    ),
    "a workspace that was not written": (
        "for (int i = 0; i < 500; i++) out[i] = w[i % 64];",
        MEMORY, "of output 0", "",
    ),
    "one sum for all threads": (
        "float sum = 0;\n#pragma omp parallel for\nfor (int i = 0; i < 500; i++)\nsum += in[i];\n"
        "for (int i = 0; i < 500; i++) out[i] = sum;",
        THREAD, "data race", "line 6 (sum += in[i];)",
    ),
    "ranges that overlap by one, with the same values": (
        "#pragma omp parallel for schedule(dynamic)\nfor (int b = 0; b < 50; b++)\n"
        "for (int i = 10 * b; i < 10 * b + 11 && i < 500; i++)\nout[i] = in[i];",
        THREAD, "data race, write of size 4 in line 6 (out[i] = in[i];)", "output 0",
    ),
    "a missing barrier": (
        "#pragma omp parallel\n{\n#pragma omp for nowait\nfor (int i = 0; i < 64; i++) w[i] = in[i];\n"
        "#pragma omp for\nfor (int i = 0; i < 500; i++)\nout[i] = w[63 - i % 64];\n}",
        THREAD, "data race", "workspace 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_the_sanitizer_that_is_there_for_it(name, tmp_path):
    body, check, what, where = FAULTS[name]
    found = sanitized(kernel(body), tmp_path)
    assert isinstance(found, Refused), found
    assert found.check == check
    assert what in found.message and where in found.message
    assert not list(tmp_path.iterdir()), "something was left in the build folder"


LOOK_UP = """#include <cstdint>
extern "C" int64_t run(const float* __restrict table, const int64_t* __restrict at, float* __restrict out) {
  int64_t bad = 0;
#pragma omp parallel for reduction(| : bad)
  for (int64_t i = 0; i < 300; i++) {
    int64_t k = at[i];
    bad |= k < 0 || k >= 50;
    out[i] = CHECKED table[k];
  }
  return bad;
}
"""


@pytest.mark.parametrize("checked", [True, False])
def test_an_index_out_of_range_may_be_reported_but_not_be_read_at(checked, tmp_path):
    index = TensorSpec((300,), (1,), "int64", "cpu")
    table, out = TensorSpec((50,), (1,), "float32", "cpu"), TensorSpec((300,), (1,), "float32", "cpu")
    node = RegionNode("aten.index_select.default", ({"node": "i0"}, 0, {"node": "i1"}), {}, (out,))
    region, workload = Region((table, index), (node,), ("n0",)), Workload((), (None, InputRange(0, 49)))
    source = LOOK_UP.replace("CHECKED", "k < 0 || k >= 50 ? 0.0f :" if checked else "")
    look_up = Kernel("cpp", source, (Launch("run", (Argument("input", 0), Argument("input", 1), OUT)),))
    inputs = telling_inputs(region, workload)[:4]
    assert "beyond" in inputs and "far" in inputs
    result = sanitized(look_up, tmp_path, inputs, region=region, workload=workload)
    if checked:
        assert isinstance(result, Sanitized), result
        assert all(check.inputs == inputs for check in result.checks.values())
    else:
        assert isinstance(result, Refused) and result.check == "address sanitizer"


EVERY_CONSTRUCT = """
float total = 0, most = -1, chosen = 0;
double bins[4] = {};
#pragma omp parallel for schedule(dynamic, 7) reduction(+ : total) reduction(max : most)
for (int64_t i = 0; i < 500; i++) { out[i] = in[i]; total += 1; most = in[i] > most ? in[i] : most; }
#pragma omp parallel for schedule(guided) reduction(+ : bins[:4])
for (uint64_t i = 500; i > 0; i -= 2) bins[i & 3] += 1;
#pragma omp parallel for schedule(static, 3) collapse(2) num_threads(3)
for (int i = 0; i < 50; i++)
  for (int k = 0; k < 10; k++) out[i * 10 + k] += 1;
#pragma omp parallel
{
#pragma omp for schedule(runtime)
  for (int i = 0; i < 64; i++) w[i] = out[i];
#pragma omp single
  w[0] = 5;
#pragma omp for schedule(monotonic : dynamic) nowait
  for (int i = 0; i < 500; i++) out[i] += w[i % 64];
#pragma omp critical
  most += 1;
#pragma omp barrier
#pragma omp atomic
  w[2] += 1;
  float mine;
#pragma omp single copyprivate(mine)
  mine = 3;
#pragma omp parallel for
  for (int i = 0; i < 2; i++) mine += 1;
#pragma omp atomic
  chosen += mine;
}
out[0] = total + float(bins[0]) + chosen + most;
"""


def test_what_orders_threads_is_understood(tmp_path):
    result = sanitized(kernel(EVERY_CONSTRUCT), tmp_path)
    assert isinstance(result, Sanitized), result
    assert isinstance(result.checks[THREAD], Clean), result


@pytest.mark.parametrize("order", ["critical", "single"])
def test_without_an_order_there_is_a_race(order, tmp_path):
    result = sanitized(kernel(EVERY_CONSTRUCT.replace(f"#pragma omp {order}\n", "", 1)), tmp_path)
    assert isinstance(result, Refused) and result.check == THREAD, result


RUN_NO_THREADS = "#pragma omp parallel for if(in[0] > 1e30f)\nfor (int i = 0; i < 500; i++) out[i] = in[i];"
TASKS = (
    "#pragma omp parallel\n#pragma omp single\nfor (int i = 0; i < 500; i++) {\n#pragma omp task\nout[i] = in[i];\n}"
)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (TASKS, "GOMP_task is not followed"),
        (RUN_NO_THREADS, "no input made the kernel start threads"),
        ("for (int i = 0; i < 500; i++) out[i] = in[i];", "the kernel starts no threads"),
    ],
)
def test_what_was_not_checked_is_not_called_clean(body, reason, tmp_path):
    result = sanitized(kernel(body), tmp_path)
    assert isinstance(result, Sanitized), result
    assert result.checks[THREAD] == NotRun(reason)
    assert result.to_json()[THREAD] == f"not run: {reason}"
    assert isinstance(result.checks[ADDRESS], Clean) and result.checks[ADDRESS].inputs == ("normal", "uniform")


def test_a_kernel_that_does_not_end_is_stopped(tmp_path):
    body = "volatile int on = 1;\nwhile (on) { }\nout[0] = 1;"
    result = sanitized(kernel(body), tmp_path, limit_s=0.5)
    assert isinstance(result, Sanitized)
    assert result.checks[ADDRESS] == result.checks[MEMORY] == NotRun("took longer than 0.5 s")


@pytest.mark.parametrize(("threads", "check"), [(3, None), (2, "address sanitizer")])
def test_memory_is_checked_with_the_targets_threads(threads, check, tmp_path):
    body = "for (int i = 0; i < 500; i++) out[i] = in[i];\nif (omp_get_max_threads() < 3) out[500] = 1;"
    right = kernel(body)
    result = sanitized(replace(right, source=f"#include <omp.h>\n{right.source}"), tmp_path, threads=threads)
    assert result.check == check if check else isinstance(result, Sanitized), result


def test_the_gate_comes_first(tmp_path):
    refused = sanitized(kernel('system("true");'), tmp_path)
    assert isinstance(refused, Refused) and refused.check == "gate"


def test_gaps_between_an_outputs_elements_need_not_be_written(tmp_path):
    out = TensorSpec((500,), (2,), "float32", "cpu")
    node = RegionNode("aten.sum.dim_IntList", ({"node": "i0"}, [1]), {}, (out,))
    region = Region(row_sum_region().inputs, (node,), ("n0",))
    right = kernel("for (int i = 0; i < 500; i++) out[2 * i] = in[i];")
    assert isinstance(sanitized(right, tmp_path, region=region), Sanitized)
    beyond = kernel("for (int i = 0; i < 500; i++) out[2 * i] = out[2 * i + 1] = in[i];")
    refused = sanitized(beyond, tmp_path, region=region)
    assert isinstance(refused, Refused) and refused.check == "address sanitizer"


@pytest.mark.parametrize("name", ["router", "padded", "features", "running", "interaction"])
def test_kernels_of_the_families_pass(name, tmp_path):
    subject = next(subject for subject in family_subjects() if subject.name == name)
    inputs = telling_inputs(subject.region, subject.workload)[:3]
    result = sanitized(subject.kernel, tmp_path, inputs, region=subject.region, workload=subject.workload)
    assert isinstance(result, Sanitized), result
    assert all(isinstance(result.checks[name], Clean) for name in (ADDRESS, MEMORY)), result


def test_inputs_are_those_of_the_judge_with_indices_at_their_ends_first():
    region, workload = row_sum_region(), row_sum_workload()
    names = telling_inputs(region, workload)
    assert names[:2] == ("normal", "constant") and "fenced" not in names
    assert len(set(names)) == len(names)
    case = Case(row_sum_kernel(), region, workload, names, WorkerSetup("cpu", "", 2, 0), 1.0)
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


# Visits of every iteration, against the plain loop: over the ends of 64-bit integers, and with chunks as long as they.
VISITS = """
#include <cstdint>
#include <cstdio>
#include <map>
static int wrong;
template <typename T, typename Loop> void check(Loop loop, std::map<T, int> expected) {
  std::map<T, int> seen;
  loop([&](T i) {
#pragma omp critical
    seen[i]++;
  });
  wrong += seen != expected;
}
#define LOOP(T, schedule_, start, condition, step)                            \\
  {                                                                           \\
    std::map<T, int> expected;                                                \\
    for (T i = start; condition; step) expected[i]++;                         \\
    check<T>([](auto visit) {                                                 \\
      _Pragma("omp parallel") _Pragma(#schedule_) for (T i = start; condition; step) visit(i); \\
    }, expected);                                                             \\
  }
#define LOOPS(schedule_)                                                      \\
  LOOP(int64_t, schedule_, -7, i < 40, i++)                                   \\
  LOOP(int64_t, schedule_, -7, i < 40, i += 3)                                \\
  LOOP(int64_t, schedule_, 40, i > -7, i -= 4)                                \\
  LOOP(int64_t, schedule_, 5, i < 5, i++)                                     \\
  LOOP(int64_t, schedule_, INT64_MAX - 9, i < INT64_MAX - 1, i += 2)          \\
  LOOP(uint64_t, schedule_, UINT64_MAX - 9, i < UINT64_MAX - 1, i += 3)       \\
  LOOP(uint64_t, schedule_, 40, i > 3, i -= 5)
int main() {
  LOOPS(omp for schedule(dynamic))
  LOOPS(omp for schedule(dynamic, 4))
  LOOPS(omp for schedule(dynamic, INT64_MAX))
  LOOPS(omp for schedule(monotonic : dynamic, 3))
  LOOPS(omp for schedule(guided, 2))
  LOOPS(omp for schedule(runtime))
  LOOPS(omp for schedule(static, 3))
  std::printf("%d wrong", wrong);
}
"""


def test_the_openmp_runtime_deals_every_iteration_once(tmp_path, compiler):
    if "-fopenmp" not in compiler.flags or "g++" not in compiler.version:
        pytest.skip("the runtime is for what gcc calls")
    tmp_path.joinpath("visits.cpp").write_text(VISITS)
    runtime = Path(sanitizers.__file__).with_name("openmp.cpp")
    options = ("-std=c++20", "-O1", "-fopenmp", "-DKEVOLVE_THREADS=3", "-c")
    subprocess.run([*compiler.command, *options, "visits.cpp", str(runtime)], cwd=tmp_path, check=True)
    subprocess.run([*compiler.command, "visits.o", "openmp.o", "-o", "visits"], cwd=tmp_path, check=True)
    ran = subprocess.run(["./visits"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "0 wrong"


def test_a_tool_that_takes_too_long_leaves_nothing_behind(tmp_path):
    command = ["sh", "-c", "sleep 100 & echo $! > child; sleep 100"]
    assert run_bounded(command, tmp_path, {"PATH": os.environ["PATH"]}, 1.0) is None
    child = Path("/proc", tmp_path.joinpath("child").read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    # Killed at once, but whoever inherited it may take its time to notice.
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
