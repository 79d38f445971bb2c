"""The last word on a compiled function: as it was compiled, as plain Inductor compiles it, or eager as it came.

Regions and graphs are judged in worker processes, one by one. What the user gets is forward and backward together, in this
process; and eager, which knows no graphs, is faster than any compiler here and there. So the first call times what there is
to choose from, on copies of its inputs. What was found is remembered: where eager stays, another process compiles nothing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.fx

from .cache.key import eager_numerics
from .cache.store import Store
from .evaluate.timing import Contest, Timing
from .first_call import FirstCall
from .graph.dynamo import graph_key
from .kernel import digest_of
from .platforms import executor_for
from .platforms.executor import Executor
from .platforms.platform import Platform
from .report import GraphRow, last_run
from .settings import Settings
from .step import Function, Step, bytes_of, copies_of, random_state_kept

# Compiles the graph without anything of ours, for these inputs; None where that needs no look.
Plain = Callable[[Sequence[torch.Tensor]], Function | None]
# The steps as compiled and of a challenger; the timing's speedup is the challenger's.
Compare = Callable[[Callable[[], object], Callable[[], object]], Timing]
Name = Literal["compiled", "inductor", "eager"]

# Copies of all inputs, and of what one step makes of them, must fit beside what is there.
_MEMORY_SHARE = 0.2
# Below this, what surrounds a graph's call decides, which is the same on all sides; where work is submitted ahead it is
# hidden, or gone once the graph is replayed, and so much is left to tell kernels from launches.
_LEAST_US, _LEAST_ALONE_US = 50.0, 15.0
# Some twenty steps of each side are timed: what takes longer than this is not worth the wait.
_MOST_US = 2e6
# Submitting a step takes longer at times than it did once.
_HEAD_START = 1.5
# What a step of eager may hold beyond what the compiled one does: without fusion it is every intermediate value, and a model
# that fits when it is compiled must go on fitting.
_SPARE_BYTES = 2**20


@dataclass(frozen=True)
class FinalVerdict:
    """Which side stays, microseconds per step (median) of each that was timed, and under which ``search`` that was.

    ``speedup_low`` is the lower end of the 95 % confidence interval of its speedup over what was compiled. ``larger`` are
    sides that were out of the question, since they need more memory than what was compiled.
    """

    chosen: Name
    times_us: dict[str, float]
    speedup_low: float
    search: str
    larger: Sequence[Name] = ()

    def in_words(self) -> str:
        if self.chosen == "compiled":
            slower = [name for name in self.times_us if name not in ("compiled", *self.larger)]
            found = [f"{' and '.join(slower)} not faster"] if slower else []
            found += [f"{name} needs more memory" for name in self.larger]
            return f"stays as compiled: {', '.join(found)}"
        speedup = self.times_us["compiled"] / self.times_us[self.chosen]
        how = "runs eagerly" if self.chosen == "eager" else "left to Inductor"
        return f"{how}, {speedup:.2f}× faster than compiled with kernels"


class FinalChoice:
    """For one graph of Dynamo's, made before it is compiled (the compilers change it in place)."""

    def __init__(
        self, gm: torch.fx.GraphModule, key: str, settings: Settings, platform: Platform, store: Store,
        compare: Compare | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._platform, self._store = settings, platform, store
        target = platform.target().to_json()
        self._key = digest_of({"graph": key, "target": target, "numerics": eager_numerics()})
        self._compare = compare or self._timed
        self.known = self._recalled()
        # Where nothing will be timed, nothing has to be kept.
        self._gm = gm
        self._graph = copy.deepcopy(gm.graph) if settings.searching and self.known is None else None

    @classmethod
    def of(
        cls, gm: torch.fx.GraphModule, inputs: Sequence[Any], settings: Settings, platform: Platform, store: Store
    ) -> FinalChoice | None:
        """``None`` where the graph is left as compiled unseen: it does more than compute, or its sizes vary."""
        key = graph_key(gm.graph, gm, inputs)
        return None if key is None or not inputs else cls(gm, key, settings, platform, store)

    def untouched(self) -> torch.fx.GraphModule:
        """The graph as it came, of a choice that is open."""
        if self._graph is None:
            raise ValueError("the choice is made or may not be: the graph was not kept")
        return torch.fx.GraphModule(self._gm, copy.deepcopy(self._graph))

    def _recalled(self) -> FinalVerdict | None:
        """What is remembered; a thorough search measures again what a quick one measured."""
        found = self._store.recall("final", self._key)
        if found is None or (self._settings.search == "full" and found["search"] != "full"):
            return None
        return FinalVerdict(**found)

    def settled(self) -> Name | None:
        """The side that is known to be surely faster than kernels are; with it nothing of ours need be compiled."""
        verdict = self.known
        if verdict is None or verdict.chosen == "compiled" or verdict.speedup_low < self._settings.min_speedup:
            return None
        self._report(verdict)
        return verdict.chosen

    def between(self, compiled: Function, inductor: Plain) -> Function:
        """``compiled`` or what is faster than it; timed in the first call where that is not known yet.

        ``inductor`` compiles the graph without anything of ours. It is called once ``compiled`` has run, forward and
        backward, and gives ``None`` where there is nothing of ours in it or where its measure has been taken; what it
        raises ends the comparison.
        """
        return compiled if self._graph is None else FirstCall(compiled, partial(self._decide, inductor))

    def _decide(self, inductor: Plain, compiled: Function, inputs: Sequence[torch.Tensor]) -> Function:
        """The fastest for ``inputs``, which are left as they are. Raises what any side raises."""
        room = _MEMORY_SHARE * executor_for(self._platform.name).free_bytes()
        if 2 * bytes_of(inputs) > room:
            return compiled
        functions: dict[Name, Function] = {"compiled": compiled, "eager": self.untouched().forward}
        with random_state_kept(inputs):
            copies = copies_of(inputs)
            is_written = Step(functions["eager"], copies).writes_inputs()
            if is_written and 3 * bytes_of(inputs) > room:
                return compiled

            def own() -> list[torch.Tensor]:
                return copies_of(inputs) if is_written else copies

            first = Step(compiled, own())
            first()
            plain = inductor(copies)
            if plain is not None:
                functions["inductor"] = plain
            timings: dict[Name, Timing] = {}
            larger: list[Name] = []
            for name in [name for name in functions if name != "compiled"]:
                step = Step(functions[name], own())
                timings[name] = self._compare(first, step)
                # Two steps more, for a side that would be taken only.
                is_faster = timings[name].speedup_low >= self._settings.min_speedup
                if name == "eager" and is_faster and self._is_larger(step, first):
                    larger.append(name)
        verdict = self._verdict(timings, larger)
        if verdict is None:
            return compiled
        self._store.remember("final", self._key, asdict(verdict))
        self._report(verdict)
        return functions[verdict.chosen]

    def _is_larger(self, step: Step, compiled: Step) -> bool:
        executor = executor_for(self._platform.name)
        own, others = executor.peak_bytes(step), executor.peak_bytes(compiled)
        return own is not None and others is not None and own > others + _SPARE_BYTES

    def _verdict(self, timings: Mapping[Name, Timing], larger: Sequence[Name] = ()) -> FinalVerdict | None:
        """``None`` where nothing is to be remembered: too short a step, or too noisy a machine."""
        least = self._settings.min_speedup
        steps = [min(timing.latency_us, *timing.baselines_us.values()) for timing in timings.values()]
        if min(steps) < self._least_us():
            return None
        best = max(timings, key=lambda name: (name not in larger, timings[name].speedup_low))
        if timings[best].speedup_low < least and any(timing.too_noisy_for(least) for timing in timings.values()):
            return None
        is_better = best not in larger and timings[best].speedup_low >= least
        compiled_us = min(us for timing in timings.values() for us in timing.baselines_us.values())
        times_us: dict[str, float] = {
            "compiled": compiled_us,
            **{name: timing.latency_us for name, timing in timings.items()},
        }
        chosen: Name = best if is_better else "compiled"
        return FinalVerdict(chosen, times_us, timings[best].speedup_low, self._settings.search, tuple(larger))

    def _least_us(self) -> float:
        return _LEAST_ALONE_US if executor_for(self._platform.name).submits_ahead else _LEAST_US

    def _timed(self, compiled: Callable[[], object], challenger: Callable[[], object]) -> Timing:
        """Where calls only submit work, the challenger's weaker side counts: as it is called here, where submitting may take
        longer than the work, or on the device alone, as where a model keeps it busy or a graph is replayed."""
        executor = executor_for(self._platform.name)
        for _ in range(2):
            # The first call of either may compile something still.
            compiled(), challenger()
        (base,), (own,) = executor.measure([compiled, challenger], 1, cold=False)
        if not self._least_us() <= min(base, own) <= _MOST_US:
            return Timing(own, {"compiled": base}, base / own, 0.0, base / own, 1)
        least = self._settings.min_speedup
        as_called = Contest(executor, {"compiled": compiled}).time(challenger, decide_at=least)
        if not executor.submits_ahead or as_called.speedup_low < least:
            return as_called
        executor.head_start_s = _HEAD_START * max(_submission_s(executor, step) for step in (compiled, challenger))
        alone = Contest(executor, {"compiled": compiled}).time(challenger, decide_at=least)
        return min(as_called, alone, key=lambda timing: timing.speedup_low)

    def _report(self, verdict: FinalVerdict) -> None:
        inductor_us, compiled_us = verdict.times_us.get("inductor"), verdict.times_us["compiled"]
        last_run().graph_verdicts.append(
            GraphRow(inductor_us, compiled_us, verdict.in_words(), verdict.times_us["eager"])
        )


def _submission_s(executor: Executor, step: Callable[[], object]) -> float:
    executor.synchronize()
    start = time.perf_counter()
    step()
    taken_s = time.perf_counter() - start
    executor.synchronize()
    return taken_s
