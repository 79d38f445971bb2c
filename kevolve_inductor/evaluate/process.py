"""Worker processes seen from outside: started lazily, killed with everything they started, replaced when they die."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
import weakref
from collections import deque
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import kevolve_inductor

from .. import settings
from ..exc import WorkerError
from ..platforms.free_memory import free_memory_bytes
from ..platforms.processes import end_group
from .evaluation import Crashed, ResourceFailed
from .isolation import Isolation
from .job import BaselinesJob, Job, OpenJob, RestJob, WorkerSetup, job_to_json
from .warden import OVER_MEMORY

_START_LIMIT_S = 120.0
_LOG_TAIL_BYTES = 2000
_EXIT_WAIT_S = 5.0
_REST_LIMIT_S = 5.0
# Starting a process, its context on the device and Inductor take seconds: processes that were lost this short a time ago
# will be followed by others, and as many are kept ready.
_LOSSES_LAST_S = 20.0
# What the warden says last; a candidate that prints it as well is only judged more kindly.
_OVER_MEMORY = re.compile(re.escape(OVER_MEMORY).replace(r"\{used\}", r"(\d+)").replace(r"\{allowed\}", r"(\d+)"))


@dataclass(frozen=True)
class Died:
    """The process ended before it answered. ``signal`` is ``None`` where it exited by itself."""

    signal: int | None
    log: str

    def evaluation(self) -> Crashed | ResourceFailed:
        """As the outcome of the kernel that ran in it."""
        over = _OVER_MEMORY.search(self.log)
        if over is not None:
            return ResourceFailed("bytes of memory", int(over[1]), int(over[2]))
        return Crashed(self.signal, self.log)


@dataclass(frozen=True)
class Hung:
    limit_s: float


Answer = dict[str, Any] | Died | Hung


class WorkerProcess:
    """One running worker in a session of its own. After :class:`Died` or :class:`Hung` it is gone."""

    def __init__(self, setup: WorkerSetup, log: Path, least_bytes: int = 0) -> None:
        """``least_bytes``: what it may take of memory whatever is free. Raises ``WorkerError`` where none can be started."""
        self.log = log
        self._isolation: Isolation | None = None
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        command = [sys.executable, "-P", "-m", "kevolve_inductor.evaluate.warden", str(request_end), str(reply_end)]
        self.memory_bytes = max(least_bytes, int(setup.memory_share * free_memory_bytes()))
        setup = replace(setup, memory_bytes=self.memory_bytes)
        working = log.with_name(f"{log.stem}-work")
        environment = _environment(setup)
        try:
            for folder in (
                working,
                Path(setup.folder),
                Path(environment["TMPDIR"]),
                *settings.cache_folders(environment),
            ):
                # Only what exists can be granted to a worker.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [*command, json.dumps(setup.to_json())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(request_end, reply_end),
                    start_new_session=True,
                    cwd=working,
                    env=environment,
                )
        except OSError as error:
            os.close(self._requests)
            os.close(self._replies)
            raise WorkerError(f"the evaluation worker could not be started: {error}") from error
        finally:
            os.close(request_end)
            os.close(reply_end)
        self._pending = b""
        self._close = weakref.finalize(self, _shut, self._process, self._requests, self._replies, os.getpid())

    def ask(self, job: Job, limit_s: float) -> Answer:
        message = json.dumps(job_to_json(job, limit_s)).encode() + b"\n"
        try:
            with os.fdopen(os.dup(self._requests), "wb") as pipe:
                pipe.write(message)
        except BrokenPipeError:
            return self._died()
        # Starting, which takes long where many do so at once, is no part of the job.
        up = self.isolation()
        return self._answer(time.monotonic() + limit_s, limit_s) if isinstance(up, Isolation) else up

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def isolation(self) -> Isolation | Died | Hung:
        """What the worker says of itself in its greeting. Waits until it is up."""
        if self._isolation is None:
            greeting = self._answer(time.monotonic() + _START_LIMIT_S, _START_LIMIT_S)
            if not isinstance(greeting, dict):
                return greeting
            self._isolation = Isolation.from_json(greeting["isolation"])
        return self._isolation

    def _answer(self, deadline: float, limit_s: float) -> Answer:
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                return Hung(limit_s)
            content = os.read(self._replies, 1 << 16)
            if not content:
                return self._died()
            self._pending += content
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            # Only a candidate that found the pipe writes what is not JSON there.
            answer = None
        return answer if isinstance(answer, dict) else self._died()

    def _died(self) -> Died:
        # The pipe closes a moment before the process can be waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S)
        code = self._process.poll()
        self.kill()
        content = self.log.read_bytes()[-_LOG_TAIL_BYTES:] if self.log.exists() else b""
        return Died(-code if code is not None and code < 0 else None, content.decode(errors="replace").strip())

    def kill(self) -> None:
        """End the process and all it started. May be called twice."""
        self._close()


def _shut(process: subprocess.Popen[bytes], requests: int, replies: int, owner: int) -> None:
    if os.getpid() != owner:
        # A fork of the user's process ends; the worker is not its own.
        return
    os.close(requests)
    os.close(replies)
    end_group(process)


def _environment(setup: WorkerSetup) -> dict[str, str]:
    environment = settings.worker_environment()
    package = str(Path(kevolve_inductor.__file__).parent.parent)
    searched = [
        package,
        *(os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path),
    ]
    environment["PYTHONPATH"] = os.pathsep.join(searched)
    # Kept from session to session, so that the same baseline is compiled once. Beside what the user's own processes keep
    # and would run, never in it: candidates could write there.
    for name in settings.CACHE_VARIABLES:
        environment[name] = str(Path(environment.get(name, setup.folder), f"workers-{name.split('_')[0].lower()}"))
    # Here Inductor keeps the headers that it has compiled, whatever its cache is.
    environment["TMPDIR"] = str(Path(environment["TORCHINDUCTOR_CACHE_DIR"], "tmp"))
    if setup.threads:
        environment["OMP_NUM_THREADS"] = str(setup.threads)
    if setup.quiet:
        environment["OMP_WAIT_POLICY"] = "passive"
    return environment


class WorkerSlot:
    """Keeps one worker for as long as it is needed: starts it on first use and opens the session again after a loss.

    ``tenants`` are the kernels that have run in the current process and may have damaged it; ``owes_baselines`` says that
    the session was opened again without them. Where processes get lost, up to ``most_spares`` are started ahead.
    """

    def __init__(self, setup: WorkerSetup, log: Path, most_spares: int = 0) -> None:
        self._setup, self._log, self._most_spares = setup, log, most_spares
        self._process: WorkerProcess | None = None
        self._spares: deque[WorkerProcess] = deque()
        self._lost_at: deque[float] = deque(maxlen=max(most_spares, 1))
        self._session: OpenJob | None = None
        self._is_open = False
        self._open_limit_s = 0.0
        self._session_bytes = 0
        self.tenants: set[str] = set()
        self.owes_baselines = False

    def start(self) -> None:
        """Begin starting the process, so that it gets ready while something else is done."""
        if self._process is None:
            self._process = self._next_process()
            self._is_open = False
            self.tenants.clear()

    def _next_process(self) -> WorkerProcess:
        self._stock()
        while self._spares:
            spare = self._spares.popleft()
            if spare.alive:
                return spare
            spare.kill()
        return self._started(self._setup)

    def _stock(self) -> None:
        """Have a spare process for each one that was lost lately."""
        lately = time.monotonic() - _LOSSES_LAST_S
        wanted = min(self._most_spares, sum(lost > lately for lost in self._lost_at))
        while len(self._spares) < wanted:
            self._spares.append(self._spare())

    def _spare(self) -> WorkerProcess:
        return self._started(replace(self._setup, spare=True))

    def _started(self, setup: WorkerSetup) -> WorkerProcess:
        # Of what was free for a session's first process the other role has taken its part by now.
        least_bytes = self._session_bytes if self._session is not None else 0
        return WorkerProcess(setup, self._free_log(), least_bytes)

    def _free_log(self) -> Path:
        """A name that no running process of this slot writes to."""
        taken = {process.log for process in (*self._spares, self._process) if process is not None}
        numbered = (self._log.with_name(f"{self._log.stem}-{number}.log") for number in count(1))
        return next(log for log in chain((self._log,), numbered) if log not in taken)

    def open(self, job: OpenJob, limit_s: float) -> Answer:
        """Start a session; if that works it is opened again in every later process of this slot."""
        self._session = None
        answer = self.ask(job, limit_s)
        if isinstance(answer, dict) and "error" not in answer:
            self._session, self._open_limit_s, self._is_open = replace(job, later=True), limit_s, True
            self._session_bytes = self._process.memory_bytes if self._process is not None else 0
            self.owes_baselines = False
        return answer

    def isolation(self) -> Isolation:
        """Of the current process. Raises ``WorkerError`` where none comes up."""
        self.start()
        assert self._process is not None
        up = self._process.isolation()
        if isinstance(up, Isolation):
            return up
        self._process = None
        raise WorkerError(f"the evaluation worker did not come up: {up}")

    def settle_baselines(self) -> None:
        """Have them measured in the current process. Raises ``WorkerError`` where that fails."""
        self._reopen()
        if self.owes_baselines:
            answer = self.ask(BaselinesJob(), self._open_limit_s)
            if not isinstance(answer, dict) or "error" in answer:
                raise WorkerError(f"the replaced evaluation worker did not measure the baselines: {answer}")
            self.owes_baselines = False

    def ask(self, job: Job, limit_s: float, in_session: bool = True) -> Answer:
        """One answer. A job outside the session ends it; the next one inside opens it again.

        Raises ``WorkerError`` where no process can be started or the session cannot be opened again.
        """
        if in_session:
            self._reopen()
        else:
            self._is_open = False
        self.start()
        return self._ask(job, limit_s)

    def _reopen(self) -> None:
        self.start()
        if self._session is None or self._is_open:
            return
        opened: Answer = {}
        # A spare may have ended while it waited.
        for _ in range(2):
            self.start()
            opened = self._ask(self._session, self._open_limit_s + _START_LIMIT_S)
            if isinstance(opened, dict):
                break
        if not isinstance(opened, dict) or "error" in opened:
            raise WorkerError(f"the evaluation worker was replaced but its session did not open: {opened}")
        self._is_open = self.owes_baselines = True

    def _ask(self, job: Job, limit_s: float) -> Answer:
        assert self._process is not None
        try:
            answer = self._process.ask(job, limit_s)
        except BaseException:
            # Interrupted while waiting: the answer would be taken for the next question's.
            self.replace()
            raise
        if not isinstance(answer, dict):
            self._process = None
            self._lost()
        return answer

    def rest(self) -> bool:
        """End the session and keep the process; whether there is one that can be kept."""
        self._session = None
        answer = self.ask(RestJob(), _REST_LIMIT_S, in_session=False) if self._process is not None else None
        return isinstance(answer, dict) and "error" not in answer

    def renew(self) -> None:
        """End the session and the process, and begin starting another, which has time to load what the next session needs.

        Where kernels run on the processors, loading would disturb what is timed meanwhile.
        """
        self.close()
        self._process = self._started(self._setup) if self._setup.threads else self._spare()
        self._is_open = False
        self.tenants.clear()

    def replace(self) -> None:
        """Use a new process from the next question on."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            self._lost()

    def _lost(self) -> None:
        self._lost_at.append(time.monotonic())
        self._stock()

    def close(self) -> None:
        """End every process. May be called twice; the next question starts a new one."""
        self._session = None
        self._lost_at.clear()
        for process in (*self._spares, self._process):
            if process is not None:
                process.kill()
        self._spares.clear()
        self._process = None
