"""A seccomp filter for workers: no network, no looking into other processes, no way out of the process group.

The filter refuses what is listed and allows the rest, since drivers, compilers and thread libraries differ in what they
need. It is inherited by whatever a worker starts and cannot be taken off again.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from .system_calls import syscall

# Numbers on x86-64 and on aarch64.
_FORBIDDEN: dict[str, tuple[int, int]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # file systems and namespaces, through which files could be reached under other names
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "unshare": (272, 97), "setns": (308, 268),
    # the kernel itself, and its wider interfaces
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "bpf": (321, 280), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "reboot": (169, 142),
}  # fmt: skip
# Refused as if the kernel did not know them, so that libraries do without. The ring would do unseen what is forbidden
# here, and the flags of clone3 lie in memory, where a filter cannot read them: clone is used instead.
_UNKNOWN = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435}
# They seem to work and change nothing: whatever a worker starts stays in the process group that is killed with it.
_WITHOUT_EFFECT: dict[str, tuple[int, int]] = {"setsid": (112, 157), "setpgid": (109, 154)}

_SOCKET, _CONNECT, _CLONE, _PERF_EVENT_OPEN = (41, 198), (42, 203), (56, 220), (298, 241)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
_NAMESPACE_FLAGS = 0x7E020000
_SOCKET_TYPE_MASK = 0xF

_SECCOMP = (317, 277)
_SET_FILTER = 1
# Else some kernels slow down what runs under a filter, and a kernel would be timed as it will never run.
_ALLOW_SPECULATION = 1 << 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
# Offsets in the data that a filter sees. Both architectures are little-endian: an argument's low half comes first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32_CALLS = 0x40000000


@dataclass(frozen=True)
class _Machine:
    audit: int
    column: int


_MACHINES = {"x86_64": _Machine(0xC000003E, 0), "aarch64": _Machine(0xC00000B7, 1)}


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def refuse_system_calls() -> None:
    """Install the filter for this process, which must have one thread and no way to gain privileges.

    Raises ``OSError`` where the kernel offers no filters or the architecture is neither x86-64 nor aarch64.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"no filter is written for {platform.machine()}")
    instructions = [*_filter(machine)]
    program = _Program(len(instructions), (_Instruction * len(instructions))(*instructions))
    syscall(_SECCOMP[machine.column], _SET_FILTER, _ALLOW_SPECULATION, ctypes.byref(program))


def _filter(machine: _Machine) -> Iterator[_Instruction]:
    yield _Instruction(_LOAD, 0, 0, _ARCHITECTURE)
    # The numbers mean other calls under the 32-bit interface, which a 64-bit program can still reach.
    yield _Instruction(_EQUAL, 1, 0, machine.audit)
    yield _Instruction(_RETURN, 0, 0, _KILL_PROCESS)
    yield _Instruction(_LOAD, 0, 0, _NUMBER)
    if machine.column == 0:
        yield from _when(_AT_LEAST, _X32_CALLS, [_refusal(errno.ENOSYS)])
    for numbers in _FORBIDDEN.values():
        yield from _when(_EQUAL, numbers[machine.column], [_refusal(errno.EPERM)])
    for number in _UNKNOWN.values():
        yield from _when(_EQUAL, number, [_refusal(errno.ENOSYS)])
    for numbers in _WITHOUT_EFFECT.values():
        yield from _when(_EQUAL, numbers[machine.column], [_refusal(0)])
    # What a daemon that does not run would answer: drivers look for one and go on without.
    yield from _when(_EQUAL, _CONNECT[machine.column], [_refusal(errno.ECONNREFUSED)])
    yield from _when(_EQUAL, _SOCKET[machine.column], [*_local_streams_only()])
    yield from _when(_EQUAL, _CLONE[machine.column], [*_no_namespaces()])
    yield from _when(_EQUAL, _PERF_EVENT_OPEN[machine.column], [*_own_counters_only()])
    yield _Instruction(_RETURN, 0, 0, _ALLOW)


def _when(test: int, value: int, body: list[_Instruction]) -> Iterator[_Instruction]:
    """``body``, which returns, where the system call's number meets the test."""
    yield _Instruction(test, 0, len(body), value)
    yield from body


def _refusal(number: int) -> _Instruction:
    return _Instruction(_RETURN, 0, 0, _ERRNO | number)


def _local_streams_only() -> Iterator[_Instruction]:
    """Local sockets that need a connection, which is refused: drivers make them; datagrams could be sent without one."""
    yield _Instruction(_LOAD, 0, 0, _ARGUMENTS)
    yield _Instruction(_EQUAL, 0, 4, socket.AF_UNIX)
    yield _Instruction(_LOAD, 0, 0, _ARGUMENTS + 8)
    yield _Instruction(_AND, 0, 0, _SOCKET_TYPE_MASK)
    yield _Instruction(_EQUAL, 2, 0, socket.SOCK_STREAM)
    yield _Instruction(_EQUAL, 1, 0, socket.SOCK_SEQPACKET)
    yield _refusal(errno.EACCES)
    yield _Instruction(_RETURN, 0, 0, _ALLOW)


def _no_namespaces() -> Iterator[_Instruction]:
    yield _Instruction(_LOAD, 0, 0, _ARGUMENTS)
    yield _Instruction(_ANY_BIT, 0, 1, _NAMESPACE_FLAGS)
    yield _refusal(errno.EPERM)
    yield _Instruction(_RETURN, 0, 0, _ALLOW)


def _own_counters_only() -> Iterator[_Instruction]:
    """Of the calling thread, which profiles read; of others by their number they are refused."""
    yield _Instruction(_LOAD, 0, 0, _ARGUMENTS + 8)
    yield _Instruction(_EQUAL, 1, 0, 0)
    yield _refusal(errno.EPERM)
    yield _Instruction(_RETURN, 0, 0, _ALLOW)
