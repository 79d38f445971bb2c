"""How far a worker process is cut off from the user's machine, and the cutting itself.

A worker isolates itself before it loads torch; what it starts (compilers, Inductor's own workers) inherits everything.
Nothing here needs a privilege, so it works for an ordinary user and inside containers: namespaces, which many of those
forbid, are not used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from .landlock import SCOPE_VERSION, landlock_version, restrict_files
from .limits import is_limited, limit_process
from .seccomp import refuse_system_calls

# Of the memory that is free when it starts, what one worker and all it starts may take. Two of them work at a time.
MEMORY_SHARE = 0.45


class Level(IntEnum):
    """What holds for a worker and everything it starts; each level includes those below it.

    ``NONE``: a process group of its own, which is killed as a whole at its time limit, at its memory limit and when the
    user's process ends; an environment without secrets; working and temporary folders that are not the user's.

    ``LIMITS``: no core dumps, bounded sizes and numbers of files and processes, no way to gain privileges (no set-uid
    programs; a superuser's are given up but for access to files), the first to go when memory runs out.

    ``OFFLINE``: no network and no connection to a local service, no tracing of other processes, no namespaces or mounts,
    no way out of the process group. Files can be read and written as by the user.

    ``CONFINED``: only what is granted can be read (system folders, toolchains, Python and what is on its path) or written
    (build and temporary folders, device nodes, shared memory, and for a GPU's driver what ``/proc`` has of the process
    itself). All else in the home folder is out of reach, as are the
    memory and the environment of other processes; their command lines in ``/proc`` are not.
    """

    NONE = 0
    LIMITS = 1
    OFFLINE = 2
    CONFINED = 3


@dataclass(frozen=True)
class Isolation:
    """The level reached, and in words what kept it from being higher or whole."""

    level: Level
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level.name.lower(), "missing": list(self.missing)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Isolation:
        return cls(Level[data["level"].upper()], tuple(data["missing"]))


@dataclass(frozen=True)
class _Step:
    """What brings a process from the level below to ``level``; ``holds`` tries whether it does."""

    level: Level
    means: str
    take: Callable[[], None]
    holds: Callable[[], bool]

    def fault(self) -> str | None:
        """Take it; why it does not hold."""
        try:
            self.take()
        except OSError as error:
            return f"{self.means}: {error.strerror or error}"
        return None if self.holds() else f"{self.means}: the kernel accepts it without effect"


def isolate(most: Level, readable: Sequence[Path], writable: Sequence[Path], file_bytes: int) -> Isolation:
    """Isolate this process as far as the kernel can, up to ``most``. It must have a single thread.

    ``readable`` and ``writable`` are the folders and files granted at ``CONFINED``; no file may grow beyond ``file_bytes``.
    A step that fails does not keep those after it from being taken, but the level stays below it.
    """
    steps = (
        _Step(Level.LIMITS, "limits", lambda: limit_process(file_bytes), is_limited),
        _Step(Level.OFFLINE, "seccomp", refuse_system_calls, _is_offline),
        _Step(Level.CONFINED, "Landlock", lambda: restrict_files(readable, writable), _is_confined),
    )
    faults = {step.level: step.fault() for step in steps if step.level <= most}
    missing = [fault for fault in faults.values() if fault is not None]
    reached = next((Level(level - 1) for level, fault in faults.items() if fault is not None), most)
    if reached == Level.CONFINED and landlock_version() < SCOPE_VERSION:
        missing.append("Landlock: signals to the user's other processes are not refused (needs Linux 6.12)")
    return Isolation(reached, tuple(missing))


def _is_offline() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except PermissionError:
        return True
    return False


def _is_confined() -> bool:
    try:
        os.listdir("/")
    except PermissionError:
        return True
    return False
