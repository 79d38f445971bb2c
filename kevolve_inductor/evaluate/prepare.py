"""Building the next candidates while the present one is judged."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from ..exc import KevolveError
from ..graph.region import Region
from ..kernel import Kernel
from ..platforms.cpu import compile_cpp, generate_cpp
from ..platforms.platform import Platform
from .job import CrossJob, WorkerSetup
from .process import Hung, WorkerSlot

_MOST_PROCESSES = 16
# The bench and the referee have a core each; the user's process waits for them.
_OTHERS = 2
# Triton spends minutes on a kernel whose tile spills badly, and that kernel is never the fast one.
BUILD_LIMIT_S = 15.0


class Preparer:
    """Fills the build folder's caches: C++ by compilers run from threads, Triton by processes of its own.

    Failures are not reported: judging the kernel meets them again.
    """

    def __init__(self, platform: Platform, setup: WorkerSetup, scratch: Path) -> None:
        cores = len(os.sched_getaffinity(0))
        self._platform, self._folder = platform, Path(setup.folder)
        self._builds: dict[str, Future[bool]] = {}
        self._builders: SimpleQueue[WorkerSlot] = SimpleQueue()
        self._slots: list[WorkerSlot] = []
        count = cores
        if platform.language == "triton":
            count = min(_MOST_PROCESSES, max(1, cores - _OTHERS))
            share = setup.memory_share / count
            quiet = replace(setup, threads=1, quiet=True, builder=True, memory_share=share)
            self._slots = [WorkerSlot(quiet, scratch / f"builder-{number}.log") for number in range(count)]
            for slot in self._slots:
                self._builders.put(slot)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="kevolve-build")

    def start(self, kernels: tuple[Kernel, ...], region: Region) -> None:
        build = self._build_triton if self._slots else self._build_cpp
        for kernel in kernels:
            if kernel.digest not in self._builds:
                self._builds[kernel.digest] = self._pool.submit(build, kernel, region)

    def _build_cpp(self, kernel: Kernel, region: Region) -> bool:
        with suppress(KevolveError, OSError):
            compile_cpp(generate_cpp(kernel, region), self._folder)
        return True

    def _build_triton(self, kernel: Kernel, region: Region) -> bool:
        slot = self._builders.get()
        job = CrossJob(kernel, region, self._platform.target().features[0])
        try:
            with suppress(KevolveError):
                return not isinstance(slot.ask(job, BUILD_LIMIT_S, in_session=False), Hung)
        finally:
            self._builders.put(slot)
        return True

    def wait_for(self, kernel: Kernel) -> bool:
        """Until the kernel's build has ended; false where it took too long and was given up."""
        future = self._builds.get(kernel.digest)
        return future is None or future.result()

    def is_built(self, kernel: Kernel) -> bool:
        """Whether nothing is left to wait for; C++ is waited for as a whole, since it is built where kernels are timed."""
        future = self._builds.get(kernel.digest)
        return not self._slots or future is None or future.done()

    def wait_until_quiet(self) -> None:
        """Until nothing is being built on the processors that are about to be timed."""
        if not self._slots:
            wait(list(self._builds.values()))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for slot in self._slots:
            slot.close()
