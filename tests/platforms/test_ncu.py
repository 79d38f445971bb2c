"""Nsight Compute's raw page as comma-separated values: messages, a header, a row of units, a row per launch."""

from __future__ import annotations

import shutil
import stat
import sys

import pytest

from kevolve_inductor.platforms import ncu
from kevolve_inductor.platforms.ncu import METRICS, profile_command, profile_of_csv

IDENTITY = {"ID": "0", "Process ID": "4711", "Process Name": "python3.11", "Host Name": "127.0.0.1", "Kernel Name": "row_sum",
            "Context": "1", "Stream": "7", "Block Size": "(128, 1, 1)", "Grid Size": "(500, 1, 1)", "Device": "0",
            "CC": "9.0"}  # fmt: skip
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
FIRST = {
    "gpu__time_duration.sum": "3,000",
    "dram__bytes.sum": "202,000",
    "launch__waves_per_multiprocessor": "0.24",
    "sm__cycles_active.avg": "1,500.5",
    "sm__cycles_active.max": "3,000",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "60",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "5.5",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "24.5",
    STALL.format("long_scoreboard"): "6",
    STALL.format("wait"): "2",
    STALL.format("barrier"): "1",
    STALL.format("branch_resolving"): "1",
}
SECOND = FIRST | {
    "gpu__time_duration.sum": "1000",
    "dram__bytes.sum": "n/a",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "20",
    "sm__cycles_active.avg": "499.5",
    "sm__cycles_active.max": "1e+03",
}


def table(*launches):
    header = [*IDENTITY, *METRICS]
    rows = [header, ["" for _ in IDENTITY] + ["%" for _ in METRICS]]
    for number, launch in enumerate(launches):
        rows.append([*(IDENTITY | {"ID": str(number)}).values(), *(launch.get(name, "0") for name in METRICS)])
    return "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)


OUTPUT = f"""==PROF== Connected to process 4711 (/usr/bin/python3.11)
==PROF== Profiling "row_sum" - 0: 0%....50%....100% - 9 passes
what the program prints, with "quotes", and commas
==PROF== Disconnected from process 4711
{table(FIRST, SECOND)}
"""


def test_launches_are_added_up_or_weighted_by_their_time():
    profile = profile_of_csv(OUTPUT)
    assert (profile.launches, profile.launch_us, profile.memory_bytes) == (2, 4.0, 202_000)
    assert profile.memory_share == pytest.approx(0.5)
    assert profile.compute_share == pytest.approx(0.055)
    assert profile.occupancy == pytest.approx(0.245)
    assert profile.waves == pytest.approx(0.24)
    assert profile.idle_share == pytest.approx(0.5)
    assert set(profile.sources.values()) == {"ncu"}


def test_the_longest_stalls_are_told_by_their_share_of_all_waiting():
    stalls = profile_of_csv(OUTPUT).stalls
    assert len(stalls) == 3
    assert list(stalls.items())[:2] == [
        ("data from memory", pytest.approx(0.6)),
        ("the fixed latency of the last instruction", pytest.approx(0.2)),
    ]


def test_without_a_launch_the_tools_own_error_is_the_reason():
    refused = "==PROF== Connected to process 1\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    assert profile_of_csv(refused).missing == {"ncu": "ERR_NVGPUCTRPERM - The user does not have permission"}
    assert profile_of_csv(table()).missing == {"ncu": "ncu saw no launch"}


def test_metrics_that_could_not_be_measured_are_left_out():
    profile = profile_of_csv(table(dict.fromkeys(METRICS, "n/a")))
    assert profile.launches == 1
    assert set(profile.sources) == {"launches"}


def test_a_machine_without_the_tool_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    if ncu.find_ncu() is None:
        assert profile_command(["true"], {}).missing == {"ncu": "ncu is not installed"}


def test_the_tool_is_given_the_command_and_its_output_is_read(tmp_path, monkeypatch):
    """A stand-in that checks what it is asked for and answers as the tool does."""
    tool = tmp_path / "ncu"
    tool.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "assert sys.argv[-2:] == ['python', 'show.py'] and '--csv' in sys.argv\n"
        f"print({OUTPUT!r} if sys.argv[sys.argv.index('--page') + 1] == 'raw' else '')\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda name: str(tool))
    assert profile_command(["python", "show.py"], {}) == profile_of_csv(OUTPUT)
