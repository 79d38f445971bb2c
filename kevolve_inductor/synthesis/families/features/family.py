"""The family of feature preprocessing: independent tasks of a graph, merged into one kernel (horizontal fusion)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.meta import target_name
from ....graph.region import TensorSpec
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.loops import Store, Task, normalised
from ...expression.printer import operator_flops
from ...expression.remainder import INVERSE, Method, is_integer_division, rewritten, without_inverses
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from .cpp import source_of
from .groups import Group, grouped, is_interleaved, period_of, rolled
from .searches import TABLE_LEVELS
from .selection import LEAST_ELEMENTS, SEARCHES, components, inlinable, is_trigger, levels, members_of, sinks
from .tasks import flattened, fused, sink_tasks
from .triton import launch_of

# Pointers are kernel arguments, of which CUDA takes 4096 bytes at least.
_MOST_POINTERS = 400
_STEPS = (1, 2, 4, 8, 16)
# Blocks, warps, and about how many such programs of a walk down columns have room on a multiprocessor, or have in two rounds.
_ROOM = ((512, 4, 7), (512, 8, 5), (256, 2, 14), (512, 4, 14))
# As many programs as a large GPU runs at once; with fewer, parts of it would idle.
_RESIDENT_PROGRAMS = 1024


@dataclass(frozen=True)
class FeaturesPlan:
    """``built`` are the tasks as they were read off the graph. ``tasks`` are fused and normalised when a kernel is first
    written, which a graph whose kernels are known never needs; their accesses name region inputs, their stores outputs.
    """

    built: tuple[Task, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(normalised(task) for task in fused(flattened(task, self.inputs) for task in self.built))


class FeaturesFamily(Family):
    name: ClassVar[str] = "features"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        members = members_of(graph, device, is_trigger)
        yield from self.regions(graph, device, members)

    def regions(self, graph: torch.fx.Graph, device: str, members: set[torch.fx.Node]) -> Iterator[Match | Rejection]:
        for level in levels(graph, members):
            for chunk in _chunks(level):
                yield from self._region(graph, device, chunk, members)

    def _region(
        self, graph: torch.fx.Graph, device: str, nodes: list[torch.fx.Node], members: set[torch.fx.Node]
    ) -> Iterator[Match | Rejection]:
        """One region of all ``nodes``; where that cannot be expressed, one of the pieces that can."""
        try:
            match = self._match(graph, device, nodes, members)
        except UnsupportedError as error:
            pieces = list(components(nodes))
            if len(pieces) == 1:
                yield Rejection(error.code, error.message, self.name, tuple(nodes))  # type: ignore[arg-type]
                return
        else:
            yield self.why_not(match, device) or match
            return
        usable: list[torch.fx.Node] = []
        for piece in pieces:
            try:
                self._match(graph, device, piece, members)
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, tuple(piece))  # type: ignore[arg-type]
            else:
                usable += piece
        if usable:
            match = self._match(graph, device, usable, members)
            yield self.why_not(match, device) or match

    def _match(
        self, graph: torch.fx.Graph, device: str, nodes: Sequence[torch.fx.Node], members: set[torch.fx.Node]
    ) -> Match:
        own = set(nodes)
        inside = inlinable(graph, own, members - own)
        outputs = sinks(nodes, inside)
        builder = ExpressionBuilder(device, lambda node: node in inside)
        tasks = [task for k, node in enumerate(outputs) for task in sink_tasks(builder, node, k, inside)]
        common.check_acyclic(builder.inputs, outputs)
        inputs, results = common.specs_of(builder.inputs), common.specs_of(outputs)
        symbols = common.symbols_of((*inputs, *results))
        plan = FeaturesPlan(tuple(tasks), inputs, results, symbols)
        searches = any(target_name(node) in SEARCHES for node in builder.inlined)
        return Match(
            family=self.name,
            nodes=common.in_graph_order(graph, builder.inlined),
            inputs=tuple(builder.inputs),
            outputs=tuple(outputs),
            region_class="long tail" if searches or len(tasks) > 1 else "hot",
            plan=plan,
            flops=sum(_hinted(task) * operator_flops(store.value) for task in tasks for store in task.stores),
        )

    def why_not(self, match: Match, device: str) -> Rejection | None:
        """Where Inductor does as well, or there is too little to do."""
        total = sum(common.elements(node) for node in match.outputs)
        if total < LEAST_ELEMENTS:
            return Rejection(
                "size", f"{total} elements are too few for a kernel of their own", match.family, match.nodes
            )
        searches = any(target_name(node) in SEARCHES for node in match.nodes)
        divides = any(map(_unknown_divisors, match.plan.tasks))
        if device != "cpu" and not searches and len(match.plan.built) < 2 and not divides:
            reason = "one chain of integer arithmetic, which Inductor fuses as well"
            return Rejection("structure", reason, match.family, match.nodes)
        return None

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        plan: FeaturesPlan = match.plan
        if target.platform == "cpu":
            return _cpp_space(plan, target)
        return _triton_space(plan, target.units)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: FeaturesPlan = match.plan
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        groups = groups_of(plan, schedule)
        if language == "cpp":
            source = source_of(groups, plan.inputs, plan.outputs, plan.symbols, schedule)
            return Kernel("cpp", source, (Launch("kevolve_kernel", arguments),))
        if language == "triton":
            return launch_of(groups, plan.inputs, plan.outputs, plan.symbols, arguments, schedule)
        raise EmissionError(f"no {language} kernels of feature preprocessing")


def groups_of(plan: FeaturesPlan, schedule: Schedule) -> list[Group]:
    """The plan's tasks with remainders spelled as the schedule says, in groups of equal structure."""
    tasks = [_spelled(task, schedule) for task in plan.tasks]
    dtypes = [spec.dtype for spec in plan.outputs]
    groups = grouped(tasks, dtypes, share=schedule.get("bodies", "shared") == "shared")
    if schedule.get("columns", "apart") == "together":
        merged = [(group, rolled(group)) for group in groups]
        groups = [one for group, task in merged for one in ([group] if task is None else grouped([task], dtypes))]
    return [_with_shared_only(group, schedule) for group in groups]


def _with_shared_only(group: Group, schedule: Schedule) -> Group:
    """``group`` without reciprocals that would serve one element each: a divisor may have become one of many columns."""
    fixed = {parameter.name for parameter in group.parameters}
    if period_of(group.body, schedule) is not None:
        fixed.add(group.body.axes[-1][0])
    body = group.body
    stores = tuple(Store(without_inverses(s.value, fixed), s.offset, s.output) for s in body.stores)
    return replace(group, body=Task(body.axes, stores))


def _spelled(task: Task, schedule: Schedule) -> Task:
    """``task`` with its remainders as the schedule says. A program that walks down columns has one divisor for all of each."""
    method: Method = schedule.get("remainder", "native")  # type: ignore[assignment]
    shared = {task.axes[-1][0]} if period_of(task, schedule) is not None else set()
    return Task(task.axes, tuple(Store(rewritten(s.value, method, shared), s.offset, s.output) for s in task.stores))


def _hinted(task: Task) -> int:
    """Elements of a task, a dynamic size counting as one: a floor must not be too high."""
    return math.prod(extent for _, extent in task.axes if isinstance(extent, int))


def _chunks(nodes: list[torch.fx.Node]) -> Iterator[list[torch.fx.Node]]:
    """Whole components of ``nodes``, as many together as one kernel can take pointers."""
    chunk: list[torch.fx.Node] = []
    pointers = 0
    for piece in components(nodes):
        inside = set(piece)
        read = {source for node in piece for source in node.all_input_nodes if source not in inside}
        needed = len(read) + len(sinks(piece, inside))
        if chunk and pointers + needed > _MOST_POINTERS:
            yield chunk
            chunk, pointers = [], 0
        chunk, pointers = chunk + piece, pointers + needed
    if chunk:
        yield chunk


def _has_search(plan: FeaturesPlan) -> bool:
    return any(part.op == "search" for task in plan.tasks for value in task.values for part in ex.walk(value))


def _has_division(plan: FeaturesPlan) -> bool:
    return any(is_integer_division(part) for task in plan.tasks for value in task.values for part in ex.walk(value))


def _unknown_divisors(task: Task) -> list[Expr]:
    """By what only the data tell remainders are taken, for which compilers have nothing but a division."""
    parts = [part for value in task.values for part in ex.walk(value)]
    remainders = [part for part in parts if part.op in ("mod", "fmod") and part.dtype == "int64"]
    return [part.args[1] for part in remainders if part.args[1].op != "const"]


def _has_column_divisor(plan: FeaturesPlan) -> bool:
    """Whether such a divisor is the same for all rows of a task."""
    if not any(map(_unknown_divisors, plan.tasks)):
        return False
    walk: Schedule = {"remainder": "multiply", "columns": "together", "walk": "columns", "block": 256, "steps": 1}
    for group in groups_of(plan, walk):
        parts = [part for value in group.body.values for part in ex.walk(value)]
        if any(part.op == INVERSE and group.body.axes[-1][0] in ex.variables(part) for part in parts):
            return len(group.body.axes) > 1
    return False


def _can_roll(plan: FeaturesPlan, method: str) -> bool:
    return any(rolled(group) is not None for group in groups_of(plan, {"remainder": method}))


def _cpp_space(plan: FeaturesPlan, target: Target) -> ScheduleSpace:
    wide = "avx512f" in target.features
    choices: dict[str, tuple[int | str | bool, ...]] = {}
    if _has_search(plan):
        counts = [p.value[2] for t in plan.tasks for v in t.values for p in ex.walk(v) if p.op == "search"]
        methods = ["split", "count", "lanes"]
        if wide and min(counts) < 2**TABLE_LEVELS:
            methods.insert(0 if max(counts) > 24 else 1, "table")
        choices["search"] = tuple(methods)
    if _has_division(plan):
        choices["remainder"] = ("reciprocal", "native") if wide else ("native", "reciprocal")
    if _can_roll(plan, "reciprocal"):
        choices["columns"] = ("apart", "together")
    choices |= {"block": (1024, 512, 2048, 4096), "grain": (8, 32, 2), "order": ("dynamic", "static")}
    choices |= common.vector_choices(target)
    return common.seeded(
        choices, {"search": "split"}, {"block": 4096, "order": "static"}, {"columns": "together"}, {"vector": 256}
    )


def _triton_space(plan: FeaturesPlan, units: int) -> ScheduleSpace:
    choices: dict[str, tuple[int | str | bool, ...]] = {}
    walks: list[Schedule] = []
    if _has_search(plan):
        choices["search"] = ("binary", "pivots", "count")
    if _has_division(plan):
        choices["remainder"] = ("multiply", "native")
    if _has_column_divisor(plan):
        choices["walk"] = ("columns", "flat")
    if _can_roll(plan, "multiply"):
        choices["columns"] = ("together", "apart")
    # Columns of one space are searched faster as tasks again, if these are done across.
    groups = groups_of(plan, {"remainder": "multiply", "columns": "apart" if _has_search(plan) else "together"})
    if max(group.size for group in groups) > 1:
        # A call for every task is code for every task, which searches have too much of.
        choices["dispatch"] = ("select", "tree") if _has_search(plan) else ("select", "chunks", "tree")
        mixed = any(map(is_interleaved, groups))
        choices["order"] = ("across", "rows", "tasks") if mixed else ("tasks", "rows")
        if len(plan.tasks) <= 16:
            choices["bodies"] = ("shared", "own")
    choices |= {"block": (1024, 512, 2048, 4096, 256), "steps": _steps(plan), "num_warps": (4, 8, 2, 1)}
    if "walk" in choices:
        walks = [*_whole_waves(plan, units), {"walk": "columns", "num_warps": 8}]
        # A thread keeps something for each element of its block, so that large ones spill.
        steps = dict.fromkeys((*choices["steps"], *(walk["steps"] for walk in walks if "steps" in walk)))
        choices |= {"block": (512, 1024, 256, 2048), "steps": tuple(steps)}
    changes: tuple[Schedule, ...] = (
        *walks,
        {"walk": "flat", "block": 256, "steps": 1, "num_warps": 2},
        {"dispatch": "chunks", "block": 512, "steps": 1, "num_warps": 2},
        {"dispatch": "chunks", "block": 256, "steps": 1, "num_warps": 1},
        {"search": "pivots"},
        {"columns": "apart", "order": "across"},
        {"order": "rows"},
        {"order": "across", "search": "count"},
        {"block": 2048, "num_warps": 8},
        {"block": 512, "num_warps": 2},
        {"columns": "apart"},
    )
    return common.seeded(choices, *changes)


def _whole_waves(plan: FeaturesPlan, units: int) -> Iterator[Schedule]:
    """Walks of which as many run at once as there are: the longest ones that leave no part of the GPU idle at the end.

    Reciprocals are then made least often.
    """
    for block, warps, room in _ROOM:
        walk: Schedule = {"walk": "columns", "block": block, "num_warps": warps}
        groups = groups_of(plan, {**walk, "remainder": "multiply", "columns": "together", "steps": 1})
        body = max((group.body for group in groups), key=_hinted)
        period = period_of(body, {**walk, "steps": 1})
        if period is not None and isinstance(body.numel, int):
            at_once = max(room * units // (period // block), 1)
            steps = -(-body.numel // (period * at_once))
            if period_of(body, {**walk, "steps": steps}) is not None:
                yield {**walk, "steps": steps}


def _steps(plan: FeaturesPlan) -> tuple[int, ...]:
    """Blocks per program, the best guess first: finding its task costs a program some hundred instructions."""
    blocks = sum(_hinted(task) for task in plan.built) // 1024
    guess = max((s for s in _STEPS if s * _RESIDENT_PROGRAMS <= blocks), default=1)
    return (guess, *(s for s in _STEPS if s != guess))
