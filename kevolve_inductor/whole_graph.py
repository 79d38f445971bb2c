"""The last word on a graph: with its kernels or without, and in which of Inductor's modes.

Regions are measured one by one; what counts is the graph. Both are remembered by graph, kernels and target.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property

import torch.fx
from torch._inductor import config as inductor_config

from .cache.store import Store
from .evaluate.evaluation import GraphVerdict, ModeTimes
from .evaluate.evaluator import Evaluator
from .exc import UnsupportedError
from .graph.capture import Captured, capture_graph, graph_inputs
from .graph.cost import FREE, estimate_s
from .graph.indexed import indexed_ranges
from .graph.meta import hint_of, target_name
from .graph.ranges import Ranges
from .graph.region import Region, Workload
from .graph.swap import Swap
from .kernel import digest_of
from .platforms.platform import Ceilings, Platform
from .settings import Settings

# A whole graph may measure this much slower than Inductor's before its swaps are undone: the noise of the comparison.
_NOISE = 1.02
# Whole graphs beyond this many nodes are not compiled twice more; their regions' own evidence has to do.
_NODE_LIMIT = 1500
# Another of Inductor's modes takes long to compile here and, in every process that does not find it cached, again: it must
# be worth that, and in a quick search the graph be small.
_MODE_GAIN = 1.03
# It is tuned anew there, and not always as well: against kernels, which are what was measured, a little is not enough.
_MODE_GAIN_OVER_KERNELS = 1.1
_MODE_NODE_LIMIT = 200
_LEAST_MODE_GRAPH_S = 8e-6
# What kernels alone speed up this much is not looked at in other modes.
_HOPELESSLY_BEATEN = 6.0
_LEAST_MODES_S, _MOST_MODES_S = 20.0, 1200.0
# Settings that change nothing but for graphs with one of these operators.
_ABOUT = {"layout_optimization": frozenset({"aten.convolution.default", "aten.convolution_backward.default"})}


class WholeGraph:
    """One graph before its swaps. ``modes`` are Inductor's modes worth a look for it: none where the user chose one."""

    def __init__(
        self, graph: torch.fx.Graph, ranges: Ranges, settings: Settings, platform: Platform, store: Store,
        ceilings: Ceilings,
    ) -> None:  # fmt: skip
        self.graph, self.ranges = graph, ranges
        self.settings, self.platform, self.store = settings, platform, store
        self.modes = self._worthwhile_modes(ceilings)

    def decide(
        self, evaluator: Evaluator, wanted: tuple[Swap, ...], seconds: float
    ) -> tuple[tuple[Swap, ...], GraphVerdict | None]:
        """The swaps that hold, and what was measured: remembered, else now if this compile may measure.

        ``seconds`` from now bound the look at other modes, which gets a little time in any case.
        """
        deadline = time.monotonic() + seconds
        try:
            captured = capture_graph(self.graph)
        except UnsupportedError as error:
            return wanted, GraphVerdict(None, None, True, f"not measured: {error.message}") if wanted else None
        verdict = self._check(evaluator, captured, wanted) if wanted else None
        kept = wanted if verdict is None or holds(verdict) else ()
        if verdict is not None and kept and _leaves_nothing(captured.region, kept, verdict):
            return kept, verdict
        unlimited = self.settings.search == "full" and self.settings.budget_s is None
        until = max(deadline, time.monotonic() + (_MOST_MODES_S if unlimited else _LEAST_MODES_S))
        found = [self._in_mode(evaluator, captured, kept, mode, until) for mode in self.modes]
        best = min((one for one in found if one is not None), key=_share_of_inductors, default=None)
        if best is not None:
            # What speaks against the kernels is not to be forgotten.
            why = in_words(verdict) if verdict is not None and not kept else None
            verdict, kept = replace(best, reason=why), kept if best.swapped else ()
        return kept, verdict

    def _check(self, evaluator: Evaluator, captured: Captured, wanted: tuple[Swap, ...]) -> GraphVerdict:
        key = self._key(captured.region, wanted)
        known = self.store.recall("graph", key)
        if known is not None:
            return GraphVerdict(**known)
        if not self.settings.searching:
            return GraphVerdict(None, None, True, "not measured: search is lookup")
        if len(captured.region.nodes) > _NODE_LIMIT:
            return GraphVerdict(None, None, True, f"not measured: {len(captured.region.nodes)} nodes")
        swaps = _renamed(wanted, captured.node_names)
        verdict = evaluator.check_graph(captured.region, self._workload(captured.region), swaps)
        self.store.remember("graph", key, vars(verdict))
        return verdict

    def _worthwhile_modes(self, ceilings: Ceilings) -> tuple[str, ...]:
        modes = self.platform.modes()
        if self.settings.searching and self.settings.effective_budget_s < _LEAST_MODES_S:
            # One mode alone may take longer than the whole search is allowed to.
            return ()
        nodes = [node for node in self.graph.nodes if node.op == "call_function"]
        too_many = len(nodes) > (_NODE_LIMIT if self.settings.search == "full" else _MODE_NODE_LIMIT)
        if not modes or too_many or sum(estimate_s(node, ceilings) for node in nodes) < _LEAST_MODE_GRAPH_S:
            return ()
        operators = {target_name(node) for node in nodes}
        chosen = {name for values in modes.values() for name, value in values.items() if _is_set(name, value)}
        return tuple(
            mode for mode, values in modes.items()
            if not chosen & values.keys() and all(name not in _ABOUT or operators & _ABOUT[name] for name in values)
        )  # fmt: skip

    def _in_mode(
        self, evaluator: Evaluator, captured: Captured, swaps: tuple[Swap, ...], mode: str, until: float
    ) -> GraphVerdict | None:
        """The verdict if the graph is faster in that mode of Inductor's, with or without the swaps, else ``None``."""
        key = self._key(captured.region, swaps, mode)
        known = self.store.recall("mode", key)
        if known is None:
            limit_s = until - time.monotonic()
            if not self.settings.searching or limit_s <= 0:
                return None
            workload, renamed = self._workload(captured.region), _renamed(swaps, captured.node_names)
            known = asdict(evaluator.time_mode(captured.region, workload, renamed, mode, limit_s))
            self.store.remember("mode", key, known)
        times = ModeTimes(**known)
        # Kernels that the check has confirmed do not give way to a mode that they were not timed beside.
        return None if swaps and times.kevolve_us is None else _faster_in_mode(times, mode)

    def _key(self, graph: Region, swaps: Sequence[Swap], mode: str | None = None) -> str:
        kernels = sorted(swap.kernel.digest for swap in swaps)
        key = {"graph": graph.digest, "kernels": kernels, "target": self.platform.target().to_json()}
        return digest_of(key if mode is None else key | {"mode": mode})

    def _workload(self, region: Region) -> Workload:
        inputs = graph_inputs(self.graph)
        sizes = tuple((name, hint_of(inputs[which].meta["val"].shape[dim])) for name, which, dim in region.symbols)
        return Workload(sizes, tuple(self.ranges.get(node) or self._indexed.get(node) for node in inputs))

    @cached_property
    def _indexed(self) -> Ranges:
        """What nobody has seen, such as a backward graph's inputs, must at least be in range."""
        return indexed_ranges(self.graph.nodes)


def _leaves_nothing(graph: Region, swaps: Sequence[Swap], verdict: GraphVerdict) -> bool:
    """Whether the kernels are the whole graph and so fast that no mode of Inductor's will do better."""
    if verdict.inductor_us is None or verdict.kevolve_us is None:
        return False
    inside = sum(node.target not in FREE for swap in swaps for node in swap.region.nodes)
    covered = inside >= sum(node.target not in FREE for node in graph.nodes)
    return covered and verdict.inductor_us >= _HOPELESSLY_BEATEN * verdict.kevolve_us


def _is_set(name: str, value: object) -> bool:
    """By the user: no mode goes against that, nor repeats it."""
    return bool(getattr(inductor_config, name) == value)


def _share_of_inductors(verdict: GraphVerdict) -> float:
    assert verdict.kevolve_us is not None and verdict.inductor_us is not None
    return verdict.kevolve_us / verdict.inductor_us


def holds(verdict: GraphVerdict) -> bool:
    """Whether the swaps may stay."""
    if verdict.inductor_us is None or verdict.kevolve_us is None:
        return verdict.correct
    return verdict.correct and verdict.kevolve_us <= verdict.inductor_us * _NOISE


def in_words(verdict: GraphVerdict) -> str:
    if verdict.mode is not None:
        why = f" ({verdict.reason})" if verdict.reason else ""
        return f"Inductor {verdict.mode}, {'with' if verdict.swapped else 'without'} kernels{why}"
    return verdict.reason or ("confirmed" if holds(verdict) else "slower or different: swaps undone")


def _renamed(swaps: Sequence[Swap], names: Mapping[str, str]) -> tuple[Swap, ...]:
    return tuple(
        replace(swap, inputs=tuple(names[n] for n in swap.inputs), outputs=tuple(names[n] for n in swap.outputs))
        for swap in swaps
    )


def _faster_in_mode(times: ModeTimes, mode: str) -> GraphVerdict | None:
    default = [time_us for time_us in (times.inductor_us, times.kevolve_us) if time_us is not None]
    in_mode = [
        (us, swapped) for us, swapped in ((times.kevolve_mode_us, True), (times.mode_us, False)) if us is not None
    ]
    if times.inductor_us is None or not in_mode:
        return None
    best_us, swapped = min(in_mode)
    has_kernels = times.kevolve_us is not None and times.kevolve_us < times.inductor_us
    gain = _MODE_GAIN_OVER_KERNELS if has_kernels and not swapped else _MODE_GAIN
    if best_us * gain > min(default):
        return None
    return GraphVerdict(times.inductor_us, best_us, True, mode=mode, swapped=swapped)
