"""What hostile code in a worker would try, as a program: isolates itself, tries, and prints what each try came to.

python intruder.py LEVEL FOLDER OUTSIDE [USER]: FOLDER may be written in, OUTSIDE may not even be read and holds the files
``secret`` and ``removable`` and the listening socket ``service``. With USER it becomes that ordinary user first.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

from kevolve_inductor.evaluate.isolation import Level, grants, isolate
from kevolve_inductor.evaluate.isolation.system_calls import syscall

NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "unshare": (272, 97), "keyctl": (250, 219),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
}  # fmt: skip
SEIZE, NEW_USER, SESSION_KEYRING = 0x4206, 0x10000000, -3
FILE_BYTES = 2**20


def call(name, *arguments):
    return syscall(NUMBERS[name][platform.machine() == "aarch64"], *arguments)


def counter(process):
    # A software event, the process's time on a processor, without the kernel's part.
    attributes = (ctypes.c_uint32 * 32)(1, 128)
    attributes[10] = 1 << 5 | 1 << 6
    return call("perf_event_open", ctypes.byref(attributes), process, -1, -1, 0)


def remote_read():
    buffers = [ctypes.create_string_buffer(8) for _ in range(2)]
    local, remote = ((ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8) for buffer in buffers)
    return call("process_vm_readv", os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)


def connect(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(path))


def leave_group():
    before = os.getpgid(0)
    os.setsid()
    if os.getpgid(0) == before:
        raise OSError(errno.EPERM, "still in the group")


def too_large(path):
    with path.open("wb") as file:
        file.truncate(2 * FILE_BYTES)


def attempts(folder, outside, victim):
    """Each must fail at the level after whose name it is listed, and at those above; none without isolation."""
    return {
        "limits": {
            "dump core": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
            "write a large file": lambda: too_large(folder / "large"),
        },
        "offline": {
            "tcp": lambda: socket.socket(socket.AF_INET).close(),
            "udp": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
            "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
            "local datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
            "local service": lambda: connect(outside / "service"),
            "ptrace": lambda: call("ptrace", SEIZE, victim, 0, 0),
            "remote memory": remote_read,
            "namespace": lambda: call("unshare", NEW_USER),
            "count another's events": lambda: counter(victim),
            "ring": lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(120)),
            "keys": lambda: call("keyctl", 0, SESSION_KEYRING, 1),
            "leave the group": leave_group,
        },
        "confined": {
            "read a secret": lambda: (outside / "secret").read_text(),
            "list a folder": lambda: os.listdir(outside),
            "write": lambda: (outside / "new").write_text("x"),
            "truncate": lambda: os.truncate(outside / "secret", 3),
            "remove": lambda: (outside / "removable").unlink(),
            "another's environment": lambda: Path(f"/proc/{victim}/environ").read_text(),
        },
        # Refused by the newest kernels only.
        "signals": {"kill another": lambda: os.kill(victim, 0)},
        # What workers need works at every level.
        "allowed": {
            "own counters": lambda: os.close(counter(0)),
            "write in its folder": lambda: (folder / "inside").write_text("x"),
            "shell": lambda: subprocess.run(["/bin/sh", "-c", "exit 0"], check=True),
            "thread": lambda: threading.Thread(target=int).start(),
            "local pair": lambda: [end.close() for end in socket.socketpair()],
        },
    }


def outcome(attempt):
    """``"done"`` or the name of the error. In a process of its own, so that no attempt changes what the next one may do."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except ValueError:
            os._exit(errno.EPERM)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return errno.errorcode[code] if code else "done"


def main():
    level, folder, outside = Level[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
    if len(sys.argv) > 4:
        os.setgroups([])
        os.setgid(int(sys.argv[4]))
        os.setuid(int(sys.argv[4]))
    # It ends by itself when its input does.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as victim:
        reached = isolate(level, grants.readable(), (folder, Path("/dev/null")), FILE_BYTES)
        tried = attempts(folder, outside, victim.pid)
        found = {kind: {name: outcome(one) for name, one in group.items()} for kind, group in tried.items()}
    print(json.dumps({"isolation": reached.to_json(), "outcomes": found}))


if __name__ == "__main__":
    main()
