"""Processes that measure on one device take turns, so that several searches can share it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# A measurement beside another one is better than none: whoever holds a turn may hang.
_PATIENCE_S = 2.0
# The one folder that a confined worker shares with every other process, whatever its temporary folder is.
_SHARED = Path("/dev/shm")


@contextmanager
def turn_on(device: str, patience_s: float = _PATIENCE_S) -> Iterator[bool]:
    """Holds the turn on the device of that name (letters, digits and dashes), for this user's processes.

    Yields whether it is held: not after ``patience_s`` seconds of waiting, nor where no file can be locked.
    """
    folder = _SHARED if _SHARED.is_dir() else Path(tempfile.gettempdir())
    lock = FileLock(folder / f"kevolve-{os.getuid()}-{device}.lock", timeout=patience_s, mode=0o600)
    try:
        lock.acquire(poll_interval=0.002)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
