"""A worker's first process: ``python -m kevolve_inductor.evaluate.warden REQUESTS REPLIES SETUP``.

It forks the worker proper, stays outside of its isolation, and watches: when the user's process has ended, or when the
worker and all it started hold more memory than they may, it ends the whole process group, itself included. It never
loads torch, so that it costs little. However the worker ends, it ends likewise.

Where a worker does not come up isolated (a driver or an installation in an unusual place), the next lower level is tried,
and the greeting says so.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from .isolation import Isolation, Level, grants, isolate
from .isolation.system_calls import prctl
from .job import WorkerSetup

OVER_MEMORY = "over the memory limit: {used} of {allowed} bytes"

# Looking takes a moment of the processors that are being timed, and memory fills by a few gigabytes a second.
_TICK_S = 0.1
# A worker may have a hundred threads, each of which may have started processes: they are looked for less often.
_LOOKS_PER_SEARCH = 5
# What is no file's: what would be free without the process.
_OWN_MEMORY = re.compile(r"^Rss(?:Anon|Shmem):\s*(\d+) kB", re.MULTILINE)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_UP = b"up"
_WORDS = 500


class Warden:
    """Watches over the process group that it leads."""

    def __init__(self, setup: WorkerSetup, requests: int, replies: int) -> None:
        self._setup, self._requests, self._replies = setup, requests, replies
        self._user = os.getppid()
        self._looks = 0
        self._family: list[int] = []

    def run(self) -> int:
        """The worker's exit status, as ``os.waitpid`` gives it."""
        # Whatever the worker starts and loses sight of becomes a child of this process, and is found.
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        missing: tuple[str, ...] = ()
        worker = 0
        for level in reversed(Level):
            worker, fault = self._start(level, missing)
            if fault is None:
                break
            missing = (*missing, f"it does not come up {level.name.lower()}: {fault}")
        # Only the worker holds the pipes now: when it closes one, the other side must notice.
        os.close(self._requests)
        os.close(self._replies)
        while (status := _ended(worker)) is None:
            signal.sigtimedwait({signal.SIGCHLD}, _TICK_S)
            self._look()
        return status

    def _start(self, level: Level, missing: tuple[str, ...]) -> tuple[int, str | None]:
        """The worker's process, and why it did not come up."""
        self._looks = 0
        news, report = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(news)
            self._become_worker(level, missing, report)
        os.close(report)
        while not select.select([news], [], [], _TICK_S)[0]:
            self._look()
        heard = os.read(news, _WORDS)
        os.close(news)
        return worker, None if heard == _UP else heard.decode(errors="replace") or "it ended"

    def _become_worker(self, level: Level, missing: tuple[str, ...], report: int) -> NoReturn:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        setup = self._setup
        try:
            readable, writable = grants.readable(), grants.writable(Path(setup.folder))
            reached = isolate(level, readable, writable, setup.memory_bytes)
            from .worker import bring_up, serve

            bring_up(setup)
        except Exception as error:
            # Whatever fails here may be for want of what the isolation refuses.
            os.write(report, f"{type(error).__name__}: {error}".encode()[:_WORDS])
            raise
        greeting = Isolation(reached.level, (*missing, *reached.missing))
        os.write(self._replies, json.dumps({"isolation": greeting.to_json()}).encode() + b"\n")
        os.write(report, _UP)
        os.close(report)
        serve(setup, self._requests, self._replies)
        sys.exit()

    def _look(self) -> None:
        if os.getppid() != self._user:
            os.killpg(0, signal.SIGKILL)
        if self._looks % _LOOKS_PER_SEARCH == 0:
            self._family = [*_descendants(os.getpid())]
        self._looks += 1
        used, allowed = sum(map(_held_bytes, self._family)), self._setup.memory_bytes
        if used > allowed:
            os.write(1, OVER_MEMORY.format(used=used, allowed=allowed).encode())
            os.killpg(0, signal.SIGKILL)


def _ended(worker: int) -> int | None:
    """The worker's status once it has ended; orphans that ended are cleared away."""
    with suppress(ChildProcessError):
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == worker:
                return status
            if process == 0:
                return None
    return None


def _descendants(process: int) -> Iterator[int]:
    # Processes come and go while they are listed.
    with suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            for child in Path(f"/proc/{process}/task/{task}/children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _held_bytes(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(number) * 1024 for number in _OWN_MEMORY.findall(status))


def _end_as(status: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def main() -> NoReturn:
    setup = WorkerSetup.from_json(json.loads(sys.argv[3]))
    _end_as(Warden(setup, int(sys.argv[1]), int(sys.argv[2])).run())


if __name__ == "__main__":
    main()
