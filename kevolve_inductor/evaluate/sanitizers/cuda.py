"""Triton kernels under NVIDIA's compute-sanitizer.

It sees accesses out of bounds, races in shared memory, and reads of global memory that nobody wrote; not races between
blocks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

import kevolve_inductor

from ... import settings
from ...platforms.triton_build import HEADER_LINES
from ..evaluation import Refused
from .tool import Case, Clean, Ended, NotRun, Verdict, run_bounded

# What each tool needs besides; racecheck's warnings are about hazards that a program may intend.
_TOOLS: Mapping[str, tuple[str, ...]] = {
    "memcheck": ("--padding", "2048", "--report-api-errors", "no"),
    "racecheck": ("--racecheck-detect-level", "error"),
    "initcheck": (),
}
_COMMON = ("--show-backtrace", "no", "--print-limit", "3", "--check-exit-code", "no")
# Python, torch, the driver and the tool itself take their time before the kernel runs.
_START_S = 120.0
# Its exit status says less: without a summary nothing was checked, whatever the status.
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error")
# One report: a line, and what is indented under it.
_REPORT = re.compile(r"^=+ (?P<what>\S.*)\n(?P<where>(?:=+ {2,}\S.*\n?)+)", re.MULTILINE)
_MOST_LINES = 4


def sanitize_cuda(case: Case, scratch: Path, start_s: float = _START_S) -> Iterator[tuple[str, Verdict]]:
    """What each tool says, one after the other. ``start_s``: how long one may take beside the kernel's runs."""
    environment = _environment(scratch)
    command = _find(environment)
    scratch.joinpath("case.json").write_text(json.dumps(case.to_json()))
    for tool in _TOOLS:
        if command is None:
            yield tool, NotRun("compute-sanitizer is not installed")
        else:
            yield tool, _run((*command, "--tool", tool), tool, case, scratch, environment, case.limit_s + start_s)


def _environment(scratch: Path) -> dict[str, str]:
    environment = settings.worker_environment()
    searched = (str(Path(kevolve_inductor.__file__).parents[1]), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in searched if path)
    environment["TRITON_CACHE_DIR"] = str(scratch / "triton-cache")
    # A cache of blocks would hide where a tensor ends: so every tensor is an allocation of its own.
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    return environment


def _find(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The command, on the path, in the CUDA toolkit or among Python's packages."""
    toolkit = environment.get("CUDA_HOME") or environment.get("CUDA_PATH") or "/usr/local/cuda"
    packages = sorted(Path(torch.__file__).parents[1].glob("nvidia/*/bin"))
    searched = os.pathsep.join([environment.get("PATH", os.defpath), f"{toolkit}/bin", *map(str, packages)])
    found = shutil.which("compute-sanitizer", path=searched)
    if found is None:
        return None
    # Where the toolkit has them the tool finds its libraries by itself.
    libraries = Path(found).parents[1] / "lib"
    packaged = libraries.joinpath("libsanitizer-collection.so").exists()
    return (found, "--injection-path", str(libraries)) if packaged else (found,)


def _run(
    command: tuple[str, ...], tool: str, case: Case, scratch: Path, environment: Mapping[str, str], limit_s: float
) -> Verdict:
    finished = scratch / f"{tool}-finished"
    launcher = (sys.executable, "-P", "-m", "kevolve_inductor.evaluate.sanitizers.launcher", "case.json", finished.name)
    start = time.monotonic()
    ended = run_bounded((*command, *_TOOLS[tool], *_COMMON, *launcher), scratch, environment, limit_s)
    if ended is None:
        return NotRun(f"took longer than {limit_s:g} s")
    inputs = tuple(finished.read_text().splitlines()) if finished.exists() else ()
    return _verdict(ended, tool, case, Clean(inputs, time.monotonic() - start))


def _verdict(ended: Ended, tool: str, case: Case, clean: Clean) -> Verdict:
    summary = _SUMMARY.search(ended.output)
    if summary is None:
        return NotRun(f"it gave no summary: {ended.last_words}")
    if int(summary[1] or summary[2]) > 0:
        return Refused(tool, _message(ended.output, case))
    return clean if clean.inputs else NotRun(f"the kernel did not run: {ended.last_words}")


def _message(output: str, case: Case) -> str:
    report = _REPORT.search(output)
    if report is None:
        return output.strip()[:300]
    where = [line.lstrip("= ") for line in report["where"].splitlines()[:_MOST_LINES]]
    text = ", ".join((report["what"], *where))
    # The kernel's file holds its source below a header.
    return re.sub(rf"{case.kernel.digest}\.py:(\d+)", lambda line: f"line {int(line[1]) - HEADER_LINES}", text)
