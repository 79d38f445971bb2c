"""The post-grad pass: from a graph to the same graph with kernels in it.

This is where the product's path runs: regions found, the store asked, what is missing searched, the winners swapped in,
the whole graph checked (``whole_graph.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.fx
from torch._inductor import config as inductor_config
from torch._inductor.custom_graph_pass import CustomGraphPass

from . import __version__
from .cache.entry import Entry
from .cache.store import Store
from .cache.trust import trusted
from .evaluate.build import gate
from .evaluate.evaluation import GraphVerdict, Passed, from_json
from .evaluate.evaluator import Evaluator
from .evaluate.explain import explain
from .exc import PlatformError, ResourceError, UndecidedError, WorkerError
from .graph.discovery import Discovery, Found, discover
from .graph.ranges import Ranges, propagate
from .graph.region import InputRange
from .graph.rewrite import apply_swaps
from .graph.swap import Swap
from .kernel import Kernel, digest_of
from .platforms import platform_for
from .platforms.platform import Ceilings, Platform
from .report import GraphRow, Progress, RegionRow, announce, last_run, warn_once
from .settings import Settings
from .synthesis.families import FAMILIES
from .synthesis.family import Family
from .tuner import TrialListener, Tuner
from .whole_graph import WholeGraph, in_words

logger = logging.getLogger(__name__)
_autotuning = logging.getLogger("torch._inductor.select_algorithm")

EvaluatorFactory = Callable[[Platform, Store, Settings], AbstractContextManager[Evaluator]]


@dataclass(frozen=True)
class Decision:
    """One region's verdict; ``entry`` is absent where it could not be decided, and ``reason`` says why."""

    found: Found
    entry: Entry | None
    searched: bool
    reason: str = ""


class SwapPass(CustomGraphPass):
    """Runs on every graph of one ``torch.compile``: inference, forward and, later, backward.

    ``seen`` are the ranges of the integer inputs. ``before`` are the user's own passes for the same hook, which run first.
    ``clock`` counts the budget's seconds.
    ``failed``: some graph was compiled without this pass since it, or what came after it, raised.
    """

    def __init__(
        self,
        settings: Settings,
        platform: Platform,
        store: Store,
        evaluator: EvaluatorFactory,
        seen: Sequence[InputRange | None],
        before: Sequence[Any] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.platform, self.store, self.clock = settings, platform, store, clock
        self._evaluator, self._seen, self._before = evaluator, tuple(seen), tuple(before)
        self.failed = False
        self._changed: list[GraphVerdict | None] = []
        self._graphs = 0

    @property
    def is_unconfirmed(self) -> bool:
        """Whether something was changed that has not been measured as a whole: forward and backward are measured apart,
        and what one keeps for the other is in neither's time; some graphs cannot be rebuilt in a worker at all."""
        measured = all(verdict is not None and verdict.kevolve_us is not None for verdict in self._changed)
        return bool(self._changed) and not (measured and self._graphs == 1)

    def uuid(self) -> Any:
        """Everything the choice of kernels depends on; ``None`` (no caching) if one of the user's passes says so.

        A graph that Inductor takes from its own cache never passes here, and its key is made before the pass runs.
        """
        before = [one.uuid() for one in self._before]
        if any(one is None for one in before):
            return None
        return digest_of(
            {
                "version": __version__,
                "settings": self.settings.fingerprint() | {"searching": self.settings.searching},
                "store": [self.store.identity(), self.store.generation()],
                "target": self.platform.target().to_json(),
                "before": [repr(one) for one in before],
            }
        )

    def __call__(self, graph: torch.fx.Graph) -> None:
        for one in self._before:
            one(graph)
        plan = GraphPlan(self, graph)
        swaps = plan.swaps()
        self._graphs += 1
        if swaps or plan.mode is not None:
            self._changed.append(plan.verdict)
        if swaps:
            apply_swaps(graph, swaps)
        if plan.mode is not None:
            # For the rest of this graph's compilation; ``settings_restored`` ends it.
            for name, value in self.platform.modes()[plan.mode].items():
                setattr(inductor_config, name, value)
            # It reports as an error every choice that does not fit this chip.
            _autotuning.setLevel(logging.CRITICAL)

    @contextmanager
    def settings_restored(self) -> Iterator[None]:
        """Around one graph's compilation: whatever mode is chosen for it is for it alone."""
        names = {name for settings in self.platform.modes().values() for name in settings}
        level = _autotuning.level
        try:
            with inductor_config.patch({name: getattr(inductor_config, name) for name in names}):
                yield
        finally:
            _autotuning.setLevel(level)


class GraphPlan:
    """Decides what to swap in one graph, and in which of Inductor's modes (``None``: its default) it is compiled."""

    def __init__(self, owner: SwapPass, graph: torch.fx.Graph) -> None:
        self.settings, self.platform, self.store, self.clock = owner.settings, owner.platform, owner.store, owner.clock
        self._factory = owner._evaluator
        self.graph = graph
        self.ranges: Ranges = propagate(graph, owner._seen)
        self.report = last_run()
        self.mode: str | None = None
        self.verdict: GraphVerdict | None = None
        self._look_up_s = 0.0
        self._deadline = self.clock() + self.settings.effective_budget_s

    def swaps(self) -> tuple[Swap, ...]:
        """The swaps that hold, after everything that may be measured has been. Fills the report."""
        ceilings = self._ceilings()
        failed = None if self.settings.strict else _left_out
        discovery = discover(self.graph, FAMILIES, self.ranges, ceilings, self.platform.name, failed)
        self._report_rejections(discovery)
        whole = WholeGraph(self.graph, self.ranges, self.settings, self.platform, self.store, ceilings)
        kept = self._kept(discovery, whole) if discovery.found or whole.modes else ()
        if self.settings.report is not None:
            try:
                self.report.write(self.settings.report)
            except OSError as error:
                logger.warning("the report cannot be written to %s: %s", self.settings.report, error)
        return kept

    def _kept(self, discovery: Discovery, whole: WholeGraph) -> tuple[Swap, ...]:
        with self._factory(self.platform, self.store, self.settings) as evaluator:
            tuner = Tuner(self.settings, self.platform, self.store, evaluator, self.clock)
            decisions = self._decide(discovery, tuner)
            kept, verdict = whole.decide(evaluator, self._wanted(decisions), self._deadline - self.clock())
        self.verdict = verdict
        if self.settings.searching and any(decision.entry is None for decision in decisions):
            # Inductor will cache this graph under a key made before; the next compile must come here again and go on.
            self.store.renew_generation()
        self.mode = verdict.mode if verdict is not None else None
        self._report(decisions, {swap.outputs for swap in kept}, verdict)
        return kept

    def _ceilings(self) -> Ceilings:
        key = digest_of(self.platform.target().to_json())
        known = self.store.recall("ceilings", key)
        if known is not None:
            return Ceilings.from_json(known)
        measured = self.platform.ceilings()
        self.store.remember("ceilings", key, asdict(measured))
        return measured

    def _decide(self, discovery: Discovery, tuner: Tuner) -> list[Decision]:
        decisions: list[Decision] = []
        total = len(discovery.found)
        for position, found in enumerate(discovery.found):
            announce(Progress(position, total, found.title))
            part = _part(discovery.found[position:])
            tried = partial(_announce_trial, position, total, found.title)
            seconds = (self._deadline - self.clock()) * part
            decisions.append(self._decide_one(found, tuner, seconds, part < 1, tried))
        self.report.look_ups_us.append(self._look_up_s * 1e6)
        announce(Progress(total, total, "whole graph"))
        return decisions

    def _decide_one(
        self, found: Found, tuner: Tuner, seconds: float, others_wait: bool, tried: TrialListener
    ) -> Decision:
        start = time.perf_counter()
        known = tuner.look_up(found)
        self._look_up_s += time.perf_counter() - start
        if known is not None:
            return Decision(found, known, searched=False)
        if not self.settings.searching:
            return Decision(found, None, searched=False, reason=tuner.why_unknown(found))
        if seconds <= 0:
            return Decision(found, None, searched=False, reason="budget spent")
        try:
            return Decision(found, tuner.search(found, seconds, tried, others_wait=others_wait), searched=True)
        except ResourceError as error:
            return Decision(found, None, searched=False, reason=f"does not fit beside what is in memory: {error}")
        except UndecidedError as error:
            return Decision(found, None, searched=False, reason=f"could not be decided: {error}")
        except WorkerError as error:
            if self.settings.strict:
                raise
            return Decision(found, None, searched=False, reason=f"could not be evaluated: {error}")

    def _wanted(self, decisions: Sequence[Decision]) -> tuple[Swap, ...]:
        chosen = [(d.found, self._trusted(d.entry)) for d in decisions if d.entry is not None]
        swaps = [
            Swap(kernel, found.captured.region, found.inputs, found.outputs)
            for found, kernel in chosen
            if kernel is not None
        ]
        return tuple(swaps if self.settings.fuel is None else swaps[: self.settings.fuel])

    def _trusted(self, entry: Entry) -> Kernel | None:
        """The entry's kernel, of a trusted source and read back through the gate: whatever the store holds, only such
        text may run."""
        if entry.verdict == "baseline" or entry.kernel is None or not trusted(entry, self.settings.trust):
            return None
        kernel = self.store.kernel(entry.kernel)
        refusal = gate(kernel)
        if refusal is not None:
            logger.warning("the stored kernel of %s is refused: %s", entry.title, refusal.message)
        return kernel if refusal is None else None

    def _report_rejections(self, discovery: Discovery) -> None:
        self.report.rejections.extend((r.family, r.code, r.message) for r in discovery.rejections)

    def _report(self, decisions: Sequence[Decision], kept: set[tuple[str, ...]], verdict: GraphVerdict | None) -> None:
        self.report.searched += sum(decision.searched for decision in decisions)
        whole_us = verdict.inductor_us if verdict is not None else None
        for decision in decisions:
            swapped = decision.found.outputs in kept
            self.report.regions.append(_row(decision, swapped, whole_us))
        if verdict is not None:
            self.report.graph_verdicts.append(GraphRow(verdict.inductor_us, verdict.kevolve_us, in_words(verdict)))


def _announce_trial(position: int, total: int, title: str, trials: int, best: float) -> None:
    announce(Progress(position, total, title, trials, best))


def _part(left: Sequence[Found]) -> float:
    """The first region's part of the budget that is left: half goes by promise, half evenly, since every region has the
    same costs before its first trial. Equal regions are one search."""
    promises: dict[str, float] = {}
    for found in left:
        key = found.captured.region.digest
        promises[key] = promises.get(key, 0.0) + found.promise
    total = sum(promises.values())
    mine = promises[left[0].captured.region.digest]
    return 0.5 / len(promises) + 0.5 * (mine / total if total > 0 else 1 / len(promises))


def _left_out(family: Family, error: Exception) -> None:
    """A family that fails costs its own kernels, not those of others."""
    warn_once(f"kevolve left a family out: {family.name}", error)


def _row(decision: Decision, swapped: bool, whole_us: float | None) -> RegionRow:
    found, entry = decision.found, decision.entry
    evaluation = from_json(entry.evaluation) if entry is not None and entry.evaluation is not None else None
    passed = evaluation if isinstance(evaluation, Passed) else None
    baseline_us = min(passed.baselines_us.values()) if passed else None
    inductor_us = passed.baselines_us.get("inductor", baseline_us) if passed else None
    return RegionRow(
        title=found.title,
        family=found.family.name,
        region_class=found.match.region_class,
        share=min(inductor_us / whole_us, 1.0) if inductor_us and whole_us else found.share,
        floor_us=found.floor_us,
        baseline_us=baseline_us,
        baseline_name=passed.best_baseline if passed else None,
        kernel_us=passed.latency_us if passed and swapped else None,
        speedup=passed.speedup if passed and swapped else None,
        verdict=_verdict_words(decision, swapped),
        search_s=entry.search_s if entry is not None else 0.0,
        trials=entry.trials if entry is not None else 0,
        why=explain(evaluation) if evaluation is not None else None,
    )


def _verdict_words(decision: Decision, swapped: bool) -> str:
    if swapped:
        return "swapped" if decision.searched else "swapped (from store)"
    if decision.entry is None:
        return f"left: {decision.reason}"
    if decision.entry.verdict == "baseline":
        return "left: nothing faster found"
    return "left: whole graph not faster, or out of fuel"


def platform_of(example_inputs: Sequence[Any]) -> Platform:
    """The platform of the first tensor that is not on the CPU, else the CPU's. Raises ``PlatformError`` for others."""
    devices = [value.device.type for value in example_inputs if isinstance(value, torch.Tensor)]
    accelerators = [device for device in devices if device not in ("cpu", "meta")]
    platform = platform_for(accelerators[0] if accelerators else "cpu")
    reason = platform.available()
    if reason is not None:
        raise PlatformError(reason)
    return platform
