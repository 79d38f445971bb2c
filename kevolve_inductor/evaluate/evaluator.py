"""The interface between search and judge."""

from __future__ import annotations

from typing import Protocol

from ..graph.region import Region, Workload
from ..graph.swap import Swap
from ..kernel import Kernel
from .evaluation import Baselines, Crashed, Evaluation, GraphVerdict, ModeTimes, Refused
from .sanitizers.sanitizers import Sanitized


class Evaluator(Protocol):
    """Judges kernels. Not thread-safe; owned by one tuner, which closes it.

    A candidate that crashes, hangs or is wrong is an :data:`Evaluation`. ``WorkerError`` means that the machinery
    itself failed, after it was restarted once.
    """

    def open(self, region: Region, workload: Workload, first: tuple[Kernel, ...] = ()) -> Baselines:
        """Prepare reference and baselines for ``region``; later calls of ``evaluate`` are for it.

        ``first`` are kernels that it will be asked for soon, for where they can be built meanwhile.

        Raises ``ResourceError`` where the region does not fit in the memory that an evaluation may take.
        """
        ...

    def prepare(self, kernels: tuple[Kernel, ...], outside: bool = False) -> None:
        """Start building ``kernels`` beside whatever else runs. A hint; may do nothing."""
        ...

    def is_built(self, kernel: Kernel) -> bool:
        """Whether ``evaluate`` would not wait for a build that ``prepare`` started."""
        ...

    def evaluate(
        self, kernel: Kernel, beat: float = 0.0, surely: bool = False, outside: bool = False
    ) -> Evaluation:  # fmt: skip
        """Build, check against the fp64 reference, time against the baselines, explain.

        A kernel whose speedup stays below ``beat`` is checked on few inputs, in a large region every one on none; its
        evaluation is not ``complete``. ``surely``: check in any case, measure until it is clear whether ``speedup_low``
        reaches ``beat``, and give the diagnosis of a kernel that passes a profile.
        ``outside``: the kernel was not written by this package's families but by a language model, an agent or anybody
        else; it is refused (``"isolation"``) where the worker is less isolated than that is asked for.
        """
        ...

    def sanitize(self, kernel: Kernel) -> Sanitized | Refused | Crashed:
        """Run a kernel that was judged right under its language's sanitizers: slow, so for the one that is to be kept."""
        ...

    def check_graph(self, graph: Region, workload: Workload, swaps: tuple[Swap, ...]) -> GraphVerdict:
        """Time the whole graph with ``swaps`` applied against the same graph under plain Inductor."""
        ...

    def time_mode(
        self, graph: Region, workload: Workload, swaps: tuple[Swap, ...], mode: str, limit_s: float
    ) -> ModeTimes:
        """Time the whole graph in one of Inductor's modes (``Platform.modes``), for at most about ``limit_s`` seconds."""
        ...

    def close(self) -> None: ...
