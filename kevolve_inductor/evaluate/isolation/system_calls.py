"""System calls that Python's standard library has no function for, by their raw numbers."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: Any) -> int:
    """The call's result; integers are passed as machine words. Raises ``OSError`` with the call's own error."""
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(_LIBC.syscall(ctypes.c_long(number), *words))


def prctl(option: int, first: Any = 0, second: Any = 0) -> int:
    """Raises ``OSError``. ``first`` and ``second`` are integers or pointers; the other arguments are 0."""
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in (first, second)]
    return _checked(_LIBC.prctl(ctypes.c_int(option), *words, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def capset(header: ctypes.Structure, data: ctypes.Array[Any]) -> None:
    """Raises ``OSError``."""
    _checked(_LIBC.capset(ctypes.byref(header), data))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
