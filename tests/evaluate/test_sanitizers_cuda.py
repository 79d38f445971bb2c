"""compute-sanitizer: how it is called and understood, with a stand-in for it; and on a GPU, the tool itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kevolve_inductor.evaluate.evaluation import Refused
from kevolve_inductor.evaluate.job import WorkerSetup
from kevolve_inductor.evaluate.sanitizers.cuda import sanitize_cuda
from kevolve_inductor.evaluate.sanitizers.sanitizers import Sanitized, sanitize
from kevolve_inductor.evaluate.sanitizers.tool import Case, Clean, NotRun
from kevolve_inductor.exc import CompilerMissingError
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms.cpp_compiler import find_compiler
from kevolve_inductor.testing.evaluators import row_sum_kernel, row_sum_region, row_sum_workload

TRITON_SUM = """@triton.jit
def row_sum(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * WIDTH + at, mask=at < WIDTH, other=0.0)
    tl.store(out + row, tl.sum(value, 0))
"""


def triton_kernel(source: str = TRITON_SUM, grid: str = "500") -> Kernel:
    arguments = (Argument("input", 0), Argument("output", 0))
    return Kernel("triton", source, (Launch("row_sum", arguments, (grid,), (("WIDTH", 100), ("BLOCK", 128))),))


def case(folder: Path, kernel: Kernel, platform: str = "cuda", limit_s: float = 60.0) -> Case:
    setup = WorkerSetup(platform, str(folder), threads=0, seed=0)
    device = "cuda" if platform == "cuda" else "cpu"
    return Case(kernel, row_sum_region(device), row_sum_workload(), ("normal", "ties"), setup, limit_s)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program in compute-sanitizer's place that does what its text says."""

    def install(text: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        tool = folder / "compute-sanitizer"
        tool.write_text(f"#!{sys.executable}\nimport os, subprocess, sys, time\n{text}")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder

    return install


def run(case: Case, folder: Path, start_s: float = 60.0):
    """Tool by tool, what each says."""
    scratch = folder / "scratch"
    scratch.mkdir()
    return sanitize_cuda(case, scratch, start_s)


SAYS_CLEAN = """
at = sys.argv.index("-m")
with open(sys.argv[at + 3], "w") as file:
    file.write("normal\\nties\\n")
print("========= COMPUTE-SANITIZER")
print("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)" if "racecheck" in sys.argv
      else "========= ERROR SUMMARY: 0 errors")
"""


def test_every_tool_is_run_without_the_allocators_cache(tmp_path, stand_in):
    seen = (
        stand_in(
            'with open(os.path.join(os.path.dirname(__file__), "seen"), "a") as file:\n'
            '    print(*sys.argv[1:], os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"], file=file)\n' + SAYS_CLEAN
        )
        / "seen"
    )
    verdicts = dict(run(case(tmp_path, triton_kernel()), tmp_path))
    assert list(verdicts) == ["memcheck", "racecheck", "initcheck"]
    assert all(verdict.inputs == ("normal", "ties") for verdict in verdicts.values()), verdicts
    for tool, line in zip(verdicts, seen.read_text().splitlines(), strict=True):
        assert line.startswith(f"--tool {tool} ") and line.endswith(" 1")
        assert f"{sys.executable} -P -m kevolve_inductor.evaluate.sanitizers.launcher case.json" in line


def test_the_launcher_runs_the_kernel_on_every_input(tmp_path, stand_in):
    try:
        find_compiler()
    except CompilerMissingError as error:
        pytest.skip(str(error))
    path = Path("/usr/bin")
    stand_in(
        f'os.environ["PATH"] += ":{path}"\n'
        "done = subprocess.run(sys.argv[sys.argv.index(sys.executable):])\n"
        'print("========= ERROR SUMMARY: 0 errors" if done.returncode == 0 else "no summary")\n'
    )
    tool, verdict = next(run(case(tmp_path, row_sum_kernel(), "cpu"), tmp_path))
    assert tool == "memcheck" and isinstance(verdict, Clean), verdict
    assert verdict.inputs == ("normal", "ties")


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at row_sum+0x150 in {digest}.py:9
=========     by thread (4,0,0) in block (499,0,0)
=========     Address 0x7f2d3be30d40 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f2d3be00000 of size 200000 bytes
=========
========= ERROR SUMMARY: 12 errors
"""
INITCHECK = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at row_sum+0x150 in {digest}.py:9
=========     by thread (0,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 1 error
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at row_sum+0x150 in {digest}.py:9
=========     and Read access at row_sum+0x1a0 in {digest}.py:10 [508 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


@pytest.mark.parametrize(
    ("tool", "report", "message"),
    [
        (
            "memcheck",
            MEMCHECK,
            "Invalid __global__ read of size 4 bytes, at row_sum+0x150 in line 5, by thread (4,0,0)",
        ),
        ("initcheck", INITCHECK, "Uninitialized __global__ memory read of size 4 bytes, at row_sum+0x150 in line 5"),
        ("racecheck", RACECHECK, "Write access at row_sum+0x150 in line 5, and Read access at row_sum+0x1a0 in line 6"),
    ],
)
def test_a_report_becomes_a_refusal_that_names_the_kernels_line(tool, report, message, tmp_path, stand_in):
    text = report.replace("{digest}", triton_kernel().digest)
    stand_in(
        f"{SAYS_CLEAN.split('print')[0]}\nif {tool!r} in sys.argv:\n    print({text!r})\n    sys.exit(1)\n{SAYS_CLEAN}"
    )
    refused = sanitize(case(tmp_path, triton_kernel()))
    assert isinstance(refused, Refused) and refused.check == tool
    assert message in refused.message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('print("========= Error: Target application terminated before first instrumented API call")', "no summary"),
        ('print("========= ERROR SUMMARY: 0 errors")\nsys.exit(1)', "the kernel did not run"),
        ("time.sleep(600)", "took longer than"),
    ],
)
def test_a_tool_that_did_not_check_is_not_called_clean(text, reason, tmp_path, stand_in):
    stand_in(text)
    tool, verdict = next(run(case(tmp_path, triton_kernel(), limit_s=1.0), tmp_path, start_s=1.0))
    assert tool == "memcheck"
    assert isinstance(verdict, NotRun) and reason in verdict.reason


def test_without_the_tool_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    if list(Path(torch.__file__).parents[1].glob("nvidia/*/bin/compute-sanitizer")):
        pytest.skip("the tool is among Python's packages")
    result = sanitize(case(tmp_path, triton_kernel()))
    assert isinstance(result, Sanitized)
    assert set(result.to_json().values()) == {"not run: compute-sanitizer is not installed"}


@pytest.mark.gpu
def test_faults_are_found_on_the_gpu(tmp_path):
    right = sanitize(case(tmp_path, triton_kernel()))
    assert isinstance(right, Sanitized), right
    reasons = {name: str(check) for name, check in right.checks.items() if isinstance(check, NotRun)}
    if any("not installed" in reason for reason in reasons.values()):
        pytest.skip(str(reasons))
    assert not reasons
    beyond = sanitize(case(tmp_path, triton_kernel(TRITON_SUM.replace("mask=at < WIDTH", "mask=at >= 0"))))
    assert isinstance(beyond, Refused) and beyond.check == "memcheck", beyond
    adding = triton_kernel(TRITON_SUM.replace("tl.sum(value, 0)", "tl.load(out + row) + tl.sum(value, 0)"))
    unwritten = sanitize(case(tmp_path, adding))
    assert isinstance(unwritten, Refused) and unwritten.check == "initcheck", unwritten
