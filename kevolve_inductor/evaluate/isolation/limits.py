"""Limits that a process can set itself without any privilege: resources, and what it might still be permitted to do."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

from .system_calls import capset, prctl

_OPEN_FILES = 4096
_MORE_TASKS = 4096
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_FIRST_TO_GO = "1000"
_CAPABILITIES_VERSION = 0x20080522
# Of a superuser's capabilities, those of its everyday work on files: DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER.
_KEPT_CAPABILITIES = 1 << 1 | 1 << 2 | 1 << 3


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    """32 of the 64 bits."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def limit_process(file_bytes: int) -> None:
    """For this process and all it starts, for ever; no file may grow beyond ``file_bytes``. Raises ``OSError``.

    Memory is not among them: limits on addresses break GPU drivers, and those on single processes bound no family of them.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # When memory runs out all the same, the kernel ends this process before the user's.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_NPROC, _tasks() + _MORE_TASKS)
    # Other processes of the same user, such as another worker, can neither trace it nor read its memory.
    prctl(_PR_SET_DUMPABLE, 0)
    if os.geteuid() == 0:
        held = _KEPT_CAPABILITIES & int(_status_field("CapPrm"), 16)
        capset(_CapabilityHeader(_CAPABILITIES_VERSION, 0), (_Capabilities * 2)(_Capabilities(held, held, 0)))


def is_limited() -> bool:
    """Whether programs that this process runs can gain no privileges."""
    return _status_field("NoNewPrivs") == "1"


def _lower(limit: int, value: int) -> None:
    """A hard limit that is lower already stays."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _tasks() -> int:
    """Threads and processes on the machine: the limit counts all of one user's, of which this is an upper bound."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])


def _status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise OSError(f"/proc/self/status has no field {name}")
