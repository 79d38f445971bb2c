"""Eager as a choice: where what was compiled is slower than the graph as it came, the graph runs as it came.

Inductor loses to eager's own kernels here and there (FACTS: pooling, convolutions, norms on CPUs), and a swap does not win
everything back. So the first call of a compiled graph times both, forward and backward together where there is one, on
copies of its inputs; what was found is remembered, and another process compiles nothing where eager stays.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.fx

from .cache.key import eager_numerics
from .cache.store import Store
from .evaluate.timing import Contest, Timing
from .graph.dynamo import graph_key
from .kernel import digest_of
from .platforms import executor_for
from .platforms.platform import Platform
from .report import GraphRow, last_run
from .settings import Settings

logger = logging.getLogger(__name__)

Function = Callable[..., Any]
Compare = Callable[[Callable[[], object], Callable[[], object]], Timing]

# Copies of all inputs, and of what one step makes of them, must fit beside what is there.
_MEMORY_SHARE = 0.2
# Below this, what surrounds a graph's call decides, which is the same on both sides.
_LEAST_US = 50.0
# Some twenty steps of each side are timed: what takes longer than this is not worth the wait.
_MOST_US = 2e6


@dataclass(frozen=True)
class EagerVerdict:
    """Microseconds per step (median) of both sides, and the speedup of eager over what was compiled with the ends of its
    95 % confidence interval. ``search`` is the setting under which it was measured."""

    eager_us: float
    compiled_us: float
    speedup: float
    speedup_low: float
    search: str

    def prefers_eager(self, min_speedup: float) -> bool:
        return self.speedup_low >= min_speedup

    def in_words(self, min_speedup: float) -> str:
        if self.prefers_eager(min_speedup):
            return f"runs eagerly, {self.speedup:.2f}× faster than compiled"
        return "compiled: eager is not faster"


class EagerChoice:
    """Of one graph of Dynamo's, before it is compiled (the compilers change it in place)."""

    def __init__(
        self, gm: torch.fx.GraphModule, key: str, settings: Settings, platform: Platform, store: Store,
        compare: Compare | None = None,
    ) -> None:  # fmt: skip
        self._gm, self._graph = gm, copy.deepcopy(gm.graph)
        self._settings, self._platform, self._store = settings, platform, store
        target = platform.target().to_json()
        self._key = digest_of({"graph": key, "target": target, "numerics": eager_numerics()})
        self._compare = compare or self._timed

    @classmethod
    def of(
        cls, gm: torch.fx.GraphModule, inputs: Sequence[Any], settings: Settings, platform: Platform, store: Store
    ) -> EagerChoice | None:
        """``None`` where the graph is left as compiled unseen: it does more than compute, or its sizes vary."""
        key = graph_key(gm.graph, gm, inputs)
        return None if key is None or not inputs else cls(gm, key, settings, platform, store)

    @property
    def eager(self) -> Function:
        return torch.fx.GraphModule(self._gm, self._graph)

    def known(self) -> EagerVerdict | None:
        """What is remembered; a thorough search measures again what a quick one measured."""
        found = self._store.recall("eager", self._key)
        if found is None or (self._settings.search == "full" and found["search"] != "full"):
            return None
        return EagerVerdict(**found)

    def is_settled(self) -> bool:
        """Whether it is known that eager is faster, so that nothing need be compiled."""
        verdict = self.known()
        if verdict is None or not verdict.prefers_eager(self._settings.min_speedup):
            return False
        self._report(verdict)
        return True

    def between(self, compiled: Function) -> Function:
        """``compiled`` or eager, whichever is faster; measured in the first call where it is not known yet."""
        if not self._settings.searching or self.known() is not None:
            return compiled
        return _Undecided(self, compiled)

    def decide(self, compiled: Function, inputs: Sequence[torch.Tensor]) -> Function:
        """The faster one for ``inputs``, which are left as they are. Raises what either side raises."""
        eager = self.eager
        verdict = self._measure(eager, compiled, inputs)
        if verdict is None:
            return compiled
        self._store.remember("eager", self._key, asdict(verdict))
        self._report(verdict)
        return eager if verdict.prefers_eager(self._settings.min_speedup) else compiled

    def _measure(self, eager: Function, compiled: Function, inputs: Sequence[torch.Tensor]) -> EagerVerdict | None:
        if not _fits(inputs, executor_for(self._platform.name).free_bytes()):
            return None
        with _random_state_kept(inputs):
            sides = [_Step(side, _copies(inputs)) for side in (eager, compiled)]
            timing = self._compare(*sides)
        if timing.latency_us < _LEAST_US or timing.too_noisy_for(self._settings.min_speedup):
            return None
        (compiled_us,) = timing.baselines_us.values()
        return EagerVerdict(timing.latency_us, compiled_us, timing.speedup, timing.speedup_low, self._settings.search)

    def _timed(self, eager: Callable[[], object], compiled: Callable[[], object]) -> Timing:
        executor = executor_for(self._platform.name)
        for _ in range(2):
            # The first call of either may compile something still.
            eager(), compiled()
        (first,), (second,) = executor.measure([eager, compiled], 1, cold=False)
        if not _LEAST_US <= min(first, second) <= _MOST_US:
            return Timing(first, {"compiled": second}, second / first, 0.0, second / first, 1)
        return Contest(executor, {"compiled": compiled}).time(eager, decide_at=self._settings.min_speedup)

    def _report(self, verdict: EagerVerdict) -> None:
        words = verdict.in_words(self._settings.min_speedup)
        last_run().graph_verdicts.append(GraphRow(None, verdict.compiled_us, words, verdict.eager_us))


class _Undecided:
    """What Dynamo calls. Once decided, it is the faster side."""

    def __init__(self, choice: EagerChoice, compiled: Function) -> None:
        self._choice, self._compiled = choice, compiled
        self._lock = threading.Lock()
        self._call: Function = self._first

    def __call__(self, *inputs: Any) -> Any:
        return self._call(*inputs)

    def _first(self, *inputs: Any) -> Any:
        if _is_capturing() or not self._lock.acquire(blocking=False):
            return self._compiled(*inputs)
        try:
            self._call = self._choice.decide(self._compiled, inputs)
        except Exception as error:  # noqa: BLE001 - the boundary to the user's process: a look at eager must not end a call
            logger.debug("eager was not compared: %s: %s", type(error).__name__, error)
            self._call = self._compiled
        finally:
            self._lock.release()
        return self._call(*inputs)


class _Step:
    """One call of a function and, where gradients are wanted, its backward."""

    def __init__(self, function: Function, inputs: Sequence[torch.Tensor]) -> None:
        self._function, self._inputs = function, inputs
        self._trained = [tensor for tensor in inputs if tensor.requires_grad] if torch.is_grad_enabled() else []
        self._gradients: list[torch.Tensor] = []

    def __call__(self) -> object:
        results = self._function(*self._inputs)
        outputs = [value for value in results if isinstance(value, torch.Tensor) and value.requires_grad]
        if not self._trained or not outputs:
            return results
        if not self._gradients:
            self._gradients = [torch.randn_like(output) for output in outputs]
        return torch.autograd.grad(outputs, self._trained, self._gradients, allow_unused=True)


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _fits(inputs: Sequence[torch.Tensor], free_bytes: int) -> bool:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in inputs}
    return 2 * sum(storages.values()) <= _MEMORY_SHARE * free_bytes


def _copies(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of the same strides and values, which share memory where the originals do: a graph may write to its inputs."""
    memory: dict[int, torch.UntypedStorage] = {}
    copies = []
    with torch.no_grad():
        for tensor in inputs:
            storage = tensor.untyped_storage()
            mine = memory.setdefault(storage.data_ptr(), storage.clone())
            own = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            own.set_(mine, tensor.storage_offset(), tensor.shape, tensor.stride())
            copies.append(own.requires_grad_(tensor.requires_grad))
    return copies


def _random_state_kept(inputs: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
    devices = {tensor.device.index for tensor in inputs if tensor.device.type == "cuda"}
    kept: AbstractContextManager[None] = torch.random.fork_rng(devices=sorted(devices))
    return kept
