"""Nsight Compute on the command line: a few metrics of every launch of a kernel, from one run in a process of its own."""

from __future__ import annotations

import contextlib
import csv
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .processes import end_group
from .profile import Profile

SOURCE = "ncu"
_USUAL_PLACE = Path("/usr/local/cuda/bin/ncu")
_TIMEOUT_S = 120.0

_TIME = "gpu__time_duration.sum"
_BYTES = "dram__bytes.sum"
_WAVES = "launch__waves_per_multiprocessor"
_ACTIVE, _MOST_ACTIVE = "sm__cycles_active.avg", "sm__cycles_active.max"
_PERCENT: Mapping[str, str] = {
    "memory_share": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "compute_share": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
# Why warps that could not issue an instruction had to wait; ratios are in warps per issued instruction.
_STALLS: Mapping[str, str] = {
    "long_scoreboard": "data from memory",
    "short_scoreboard": "data from shared memory",
    "lg_throttle": "the queue to memory",
    "mio_throttle": "the queue to shared memory",
    "barrier": "other warps at a barrier",
    "membar": "a memory fence",
    "math_pipe_throttle": "a busy arithmetic unit",
    "wait": "the fixed latency of the last instruction",
    "no_instruction": "instructions to be fetched",
    "branch_resolving": "a branch",
}
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
_SHOWN_STALLS = 3
METRICS = (_TIME, _BYTES, _WAVES, _ACTIVE, _MOST_ACTIVE, *_PERCENT.values(), *(_STALL.format(name) for name in _STALLS))


def find_ncu() -> str | None:
    return shutil.which("ncu") or (str(_USUAL_PLACE) if _USUAL_PLACE.exists() else None)


def profile_command(command: Sequence[str], environment: Mapping[str, str]) -> Profile:
    """Of what ``command`` launches between ``cudaProfilerStart`` and ``cudaProfilerStop``. Takes seconds."""
    tool = find_ncu()
    if tool is None:
        return Profile.without(SOURCE, "ncu is not installed")
    # The clock stays as it is in use, and every pass begins with empty caches, as the timed calls do.
    options = ["--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off", "--clock-control", "none",
               "--cache-control", "all", "--target-processes", "all", "--metrics", ",".join(METRICS)]  # fmt: skip
    process = subprocess.Popen(
        [tool, *options, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        return profile_of_csv(process.communicate(timeout=_TIMEOUT_S)[0])
    except subprocess.TimeoutExpired:
        return Profile.without(SOURCE, f"ncu took longer than {_TIMEOUT_S:g} s")
    finally:
        # With ncu goes what it watches, which would otherwise stay behind and keep the device busy.
        end_group(process)


def profile_of_csv(text: str) -> Profile:
    """Of ncu's output: its messages, what the program printed, then a header, a row of units and a row per launch."""
    launches = _launches(text)
    if not launches:
        return Profile.without(SOURCE, _complaint(text))
    weights = [launch.get(_TIME, 0.0) for launch in launches]
    shares = {name: _mean(launches, weights, metric, 0.01) for name, metric in _PERCENT.items()}
    active, most = _sum(launches, _ACTIVE), _sum(launches, _MOST_ACTIVE)
    time_ns = _sum(launches, _TIME)
    figures = {
        **shares,
        "memory_bytes": _sum(launches, _BYTES),
        "waves": _mean(launches, weights, _WAVES),
        "idle_share": None if active is None or not most else 1.0 - active / most,
        "launch_us": None if time_ns is None else time_ns / 1e3,
        "launches": len(launches),
        "stalls": _stalls(launches, weights),
    }
    return Profile.of(SOURCE, figures)


def _launches(text: str) -> list[dict[str, float]]:
    lines = text.splitlines()
    start = next((k for k, line in enumerate(lines) if line.startswith('"ID",')), None)
    if start is None:
        return []
    rows = csv.DictReader(lines[start:])
    # The row of units has no identity, nor has what is printed after the table.
    return [_numbers(row) for row in rows if (row["ID"] or "").isdigit()]


def _numbers(row: Mapping[str, str | None]) -> dict[str, float]:
    """What could not be measured is ``"n/a"``; thousands are set apart where the locale says so."""
    found: dict[str, float] = {}
    for name in METRICS:
        with contextlib.suppress(ValueError):
            found[name] = float((row.get(name) or "").replace(",", ""))
    return found


def _complaint(text: str) -> str:
    errors = [line.split("==")[-1].strip() for line in text.splitlines() if line.startswith("==ERROR==")]
    return errors[0][:200] if errors else "ncu saw no launch"


def _sum(launches: Sequence[Mapping[str, float]], metric: str) -> float | None:
    known = [launch[metric] for launch in launches if metric in launch]
    return sum(known) if known else None


def _mean(
    launches: Sequence[Mapping[str, float]], weights: Sequence[float], metric: str, scale: float = 1.0
) -> float | None:
    """Over the launches by how long each takes."""
    known = [(launch[metric], weight) for launch, weight in zip(launches, weights, strict=True) if metric in launch]
    total = sum(weight for _, weight in known)
    return scale * sum(value * weight for value, weight in known) / total if total else None


def _stalls(launches: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    means = {words: _mean(launches, weights, _STALL.format(name)) or 0.0 for name, words in _STALLS.items()}
    total = sum(means.values())
    longest = sorted(means, key=lambda words: -means[words])[:_SHOWN_STALLS]
    return {words: means[words] / total for words in longest if means[words]} if total else {}
