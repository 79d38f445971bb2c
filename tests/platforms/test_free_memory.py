from __future__ import annotations

from pathlib import Path

import pytest

from kevolve_inductor.platforms import free_memory
from kevolve_inductor.platforms.free_memory import free_memory_bytes


def test_free_memory_is_a_part_of_what_there_is():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_memory_bytes() <= total


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "3000", "memory.current": "1000"}, 2000),
        ({"memory.max": "1000", "memory.current": "3000"}, 0),
        (
            {
                "memory.max": "3000",
                "memory.current": "3000",
                "memory.stat": "active_file 200\ninactive_file 500\nshmem 1",
            },
            700,
        ),
        ({"memory/memory.limit_in_bytes": "700", "memory/memory.usage_in_bytes": "200"}, 500),
        (
            {
                "memory/memory.limit_in_bytes": "700",
                "memory/memory.usage_in_bytes": "600",
                "memory/memory.stat": "active_file 1\ninactive_file 1\ntotal_active_file 50\ntotal_inactive_file 150",
            },
            300,
        ),
        ({"memory.max": "max", "memory.current": "1000"}, None),
        ({}, None),
    ],
)
def test_a_control_groups_limit_counts(tmp_path, monkeypatch, files, left):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content + "\n")
    monkeypatch.setattr(free_memory, "CONTROL_GROUPS", tmp_path)
    if left is None:
        assert free_memory_bytes() > 2**20
    else:
        assert free_memory_bytes() == left
