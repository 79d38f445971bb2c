"""An evaluator without hardware: every kernel passes, and how fast it is follows from its text and a seed."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ..exc import WorkerError
from ..graph.region import Region, Workload
from ..kernel import Kernel, digest_of
from .build import gate
from .evaluation import Baselines, Diagnosis, Evaluation, GraphVerdict, ModeTimes, Passed
from .sanitizers.sanitizers import Sanitized

if TYPE_CHECKING:
    from ..graph.swap import Swap

Distortion = Callable[[Kernel, float], float]

_EAGER_US = 120.0
_INDUCTOR_US = 100.0
_FASTEST_US = 20.0
_SPREAD_US = 160.0


class NullEvaluator:
    """Latencies are spread evenly around the baselines' by the kernel's digest and ``seed``: the same in any process.

    ``distortion`` maps a kernel and its latency to another latency, so that a test can turn round who is faster.
    """

    def __init__(self, seed: int = 0, distortion: Distortion | None = None) -> None:
        self._seed, self._distortion = seed, distortion
        self._region: Region | None = None

    def __enter__(self) -> NullEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, region: Region, workload: Workload, first: tuple[Kernel, ...] = ()) -> Baselines:
        self._region = region
        return Baselines({"eager": _EAGER_US, "inductor": _INDUCTOR_US}, {})

    def prepare(self, kernels: tuple[Kernel, ...], outside: bool = False) -> None:
        pass

    def is_built(self, kernel: Kernel) -> bool:
        return True

    def evaluate(
        self, kernel: Kernel, beat: float = 0.0, surely: bool = False, outside: bool = False
    ) -> Evaluation:  # fmt: skip
        """Raises ``WorkerError`` before ``open``."""
        if self._region is None:
            raise WorkerError("no region is open")
        refusal = gate(kernel)
        if refusal is not None:
            return refusal
        latency_us = self._latency_us(kernel)
        speedup = _INDUCTOR_US / latency_us
        diagnosis = Diagnosis("unknown", "null platform", 0.0, 0.0, 0.0)
        baselines_us = {"eager": _EAGER_US, "inductor": _INDUCTOR_US}
        return Passed(latency_us, baselines_us, speedup, 0.98 * speedup, 0.0, diagnosis, 0.0)

    def _latency_us(self, kernel: Kernel) -> float:
        share = int(digest_of([kernel.digest, self._seed])[:12], 16) / 16**12
        latency_us = _FASTEST_US + _SPREAD_US * share
        return latency_us if self._distortion is None else self._distortion(kernel, latency_us)

    def sanitize(self, kernel: Kernel) -> Sanitized:
        return Sanitized({})

    def check_graph(self, graph: Region, workload: Workload, swaps: tuple[Swap, ...]) -> GraphVerdict:
        saved_us = sum(_INDUCTOR_US - self._latency_us(swap.kernel) for swap in swaps)
        whole_us = 10.0 * _INDUCTOR_US * max(len(swaps), 1)
        return GraphVerdict(whole_us, whole_us - saved_us, True)

    def time_mode(
        self, graph: Region, workload: Workload, swaps: tuple[Swap, ...], mode: str, limit_s: float
    ) -> ModeTimes:
        return ModeTimes()

    def close(self) -> None:
        self._region = None
