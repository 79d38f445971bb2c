"""Landlock: from now on this process and all it starts reach only the files that were granted."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .system_calls import syscall

# The third version is the first under which files outside cannot be truncated, and the second the first under which
# files can be moved between folders that are granted.
LEAST_VERSION = 3
_NETWORK_VERSION, _DEVICE_VERSION, SCOPE_VERSION = 4, 5, 6

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_FOR_VERSION, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHARACTER_DEVICE, _MAKE_BLOCK_DEVICE = 1 << 6, 1 << 11
_TRUNCATE, _DEVICE_CONTROL = 1 << 14, 1 << 15
_UP_TO_TRUNCATE = (1 << 15) - 1
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_WRITE = _UP_TO_TRUNCATE & ~(_MAKE_CHARACTER_DEVICE | _MAKE_BLOCK_DEVICE) | _DEVICE_CONTROL
# What may be granted on anything that is not a folder.
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def landlock_version() -> int:
    """The kernel's version of the interface; 0 where there is none."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _ASK_FOR_VERSION)
    except OSError:
        return 0


def restrict_files(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Grant reading and running what lies under ``readable``, and everything under ``writable``; refuse the rest.

    A path that does not exist is left out. Where the kernel can, TCP, and signals and abstract sockets to processes
    outside, are refused as well. Processes outside can in no version be traced, nor their memory or environment be read.
    The process must have no way to gain privileges. Raises ``OSError`` where the kernel's Landlock is older than
    ``LEAST_VERSION``, or absent.
    """
    version = landlock_version()
    if version < LEAST_VERSION:
        raise OSError(errno.ENOSYS, f"Landlock has version {version}, not {LEAST_VERSION}")
    handled = _UP_TO_TRUNCATE | (_DEVICE_CONTROL if version >= _DEVICE_VERSION else 0)
    ruleset = _Ruleset(
        handled,
        _BIND_AND_CONNECT_TCP if version >= _NETWORK_VERSION else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= SCOPE_VERSION else 0,
    )
    # An older kernel accepts the longer structure as long as what it does not know is 0.
    descriptor = syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        for path in readable:
            _grant(descriptor, path, handled & _READ)
        for path in writable:
            _grant(descriptor, path, handled & (_READ | _WRITE))
        syscall(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)


def _grant(ruleset: int, path: Path, allowed: int) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = _PathBeneath(allowed if path.is_dir() else allowed & _OF_A_FILE, folder)
            syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(folder)
