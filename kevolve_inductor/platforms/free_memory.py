"""How much main memory is free for a process of this machine, or of the container it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
# The controller's folder, limit and use, in both versions of the kernel's interface.
_INTERFACES = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_memory_bytes() -> int:
    """What can be allocated without swapping: the least of what the machine and the control groups' limits leave."""
    return min((_available(), *_left_in_groups()))


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**62


def _left_in_groups() -> Iterator[int]:
    for controller, limit, use in _INTERFACES:
        for group in _own_groups(controller):
            # Where a limit is not set, the file says "max" or holds a number beyond any machine's memory.
            with suppress(OSError, ValueError):
                allowed, used = int((group / limit).read_text()), int((group / use).read_text())
                yield max(0, allowed - max(0, used - _reclaimable(group)))


def _own_groups(controller: str) -> Iterator[Path]:
    """Of this process, from its own up to the root; inside a container its own is often mounted as the root."""
    root = CONTROL_GROUPS / controller
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(",") and path != "/":
                group = root / path.lstrip("/")
                yield from (group, *(above for above in group.parents if above.is_relative_to(root) and above != root))
    yield root


def _reclaimable(group: Path) -> int:
    """Files' content that a group holds in memory and that makes room for whatever needs it."""
    with suppress(OSError):
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # With those of groups below; the newer interface always counts them.
        names = ("total_active_file", "total_inactive_file")
        return sum(int(statistics.get(name, statistics.get(name.removeprefix("total_"), 0))) for name in names)
    return 0
