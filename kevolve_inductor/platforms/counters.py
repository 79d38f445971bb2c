"""Event counters of the processor and the kernel, through Linux' ``perf_event_open``: of one thread, in user space.

See perf_event_open(2) for the structure and the numbers. Virtual machines often have no hardware counters, and containers
often forbid the call; then a reason stands where the counts would.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_HARDWARE, _SOFTWARE = 0, 1
EVENTS: Mapping[str, tuple[int, int]] = {
    "cycles": (_HARDWARE, 0),
    "instructions": (_HARDWARE, 1),
    "cache_misses": (_HARDWARE, 3),
    "branch_misses": (_HARDWARE, 5),
    "page_faults": (_SOFTWARE, 2),
}
# disabled, exclude_kernel, exclude_hv.
_FLAGS = 1 << 0 | 1 << 5 | 1 << 6
# With the times enabled and counting, which differ where the kernel lets events share a counter.
_READ_FORMAT = 1 << 0 | 1 << 1
_ATTRIBUTES_BYTES = 112
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403


@dataclass(frozen=True)
class Counts:
    """``events`` by the names of ``EVENTS``; ``refusal`` says why some of them are not there."""

    events: dict[str, float]
    refusal: str | None


def count_events(call: Callable[[], object]) -> Counts:
    """How often each event happens during one call, as far as the calling thread causes it. Raises what ``call`` raises."""
    opened, refusal = _open_all()
    try:
        for request in (_RESET, _ENABLE):
            for descriptor in opened.values():
                fcntl.ioctl(descriptor, request, 0)
        call()
        for descriptor in opened.values():
            fcntl.ioctl(descriptor, _DISABLE, 0)
        counts = {name: _scaled(os.read(descriptor, 24)) for name, descriptor in opened.items()}
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return Counts({name: count for name, count in counts.items() if count is not None}, refusal)


def _open_all() -> tuple[dict[str, int], str | None]:
    """Descriptors by event, and why the last one that failed did."""
    number = _SYSCALLS.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return {}, f"not known how to count on {platform.system()} {platform.machine()}"
    opened: dict[str, int] = {}
    refusal = None
    for name, (kind, event) in EVENTS.items():
        try:
            opened[name] = _open(number, kind, event)
        except OSError as error:
            refusal = _reason(error)
    return opened, refusal


def _open(number: int, kind: int, event: int) -> int:
    attributes = struct.pack("=IIQQQQQ", kind, _ATTRIBUTES_BYTES, event, 0, 0, _READ_FORMAT, _FLAGS)
    block = ctypes.create_string_buffer(attributes, _ATTRIBUTES_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    this_thread, any_processor, no_group = 0, -1, -1
    close_on_exec = 1 << 3
    descriptor: int = libc.syscall(
        ctypes.c_long(number), block, ctypes.c_int(this_thread), ctypes.c_int(any_processor), ctypes.c_int(no_group),
        ctypes.c_ulong(close_on_exec),
    )  # fmt: skip
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        return "this machine, perhaps a virtual one, has no hardware counters"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "the system does not permit hardware counters (kernel.perf_event_paranoid)"
    return f"hardware counters cannot be opened: {error.strerror}"


def _scaled(content: bytes) -> float | None:
    """The count as if its event had had a counter all the time; ``None`` where it never had one."""
    count, enabled, running = struct.unpack("=QQQ", content)
    return count * enabled / running if running else None
