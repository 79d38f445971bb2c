"""The family of scatters: rows of events added to (or compared with) rows that data name.

Eager and Inductor add rows on a GPU with atomic operations, whose order and so whose sums differ from run to run. A kernel
has to give the same bits every time: events are brought together by row first, in slots of the rows where these have few
(``slots``) and by sorting otherwise (``triton``), or few rows are products (``crowded``). That pays where there are many.
The order is of no matter to extremes (``extremes``), and to sums of integers that floating-point numbers are made
(``exact``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.dims import evaluate, product
from ....graph.meta import hint_of, target_name, tensor_of
from ....kernel import Kernel, Language
from ....platforms.platform import Target
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.printer import operator_flops
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from . import cpp, crowded, exact, extremes, slots, triton
from .plan import Scatter, ScatterPlan
from .rows import MOST_NUMBERED
from .structure import BAG_GRADIENTS, is_scatter, read
from .tiles import elements_of, gpu_space, stored_precision

# Fewer elements than this, read in all, are not worth a kernel of their own.
_LEAST_ELEMENTS = 4096
# On a GPU a kernel is four launches or more, and atomic operations on fewer elements take no longer; nor do they where rows
# are so short that grouping their events costs as much as adding them.
_LEAST_ON_GPU, _LEAST_ROW = 2**21, 8
# Extremes are three launches, and what others compare one by one until it has not changed meanwhile.
_LEAST_EXTREMES = 2**19
# Integers are three as well, where others add half precision by comparing and exchanging.
_LEAST_EXACT = 2**18
# Gradients of embedding bags are sorted by others, too.
_LEAST_BAGGED = 2**17
# Columns that one thread takes at least, since rows are read by cache lines.
_LEAST_COLUMNS = 16


class ScatterFamily(Family):
    name: ClassVar[str] = "scatter"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        cores = [node for node in graph.nodes if is_scatter(node) and tensor_of(node).device.type == device]
        for core in cores:
            try:
                match = _match(graph, core, device, set(cores))
                if device != "cpu":
                    _check_gpu(match)
                yield match
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, (core,))  # type: ignore[arg-type]

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        scatter: Scatter = match.plan.built
        if target.platform != "cpu":
            sizes = _hints(match)
            rooms = slots.rooms(match.plan, *sizes)
            has_extremes, is_crowded = extremes.is_offered(match.plan), crowded.is_offered(match.plan, *sizes)
            # Numbers of single precision are added one by one as fast, unless many meet in few rows.
            pays = exact.is_offered(match.plan) and (stored_precision(match.plan) is not None or is_crowded)
            copies = exact.copies_of(match.plan) if pays else ()
            return gpu_space(match.plan, *sizes, rooms, copies, has_extremes=has_extremes, is_crowded=is_crowded)
        threads = max(target.threads, 1)
        width = int(product(tuple(extent for _, extent in scatter.inner[-1:])))
        # With a part of every row a thread goes through all events in order, without choosing.
        parts = tuple(count for count in (threads, 2 * threads) if width // count >= _LEAST_COLUMNS and count > 1)
        choices: dict[str, tuple[int | str | bool, ...]] = {
            "ranges": tuple(dict.fromkeys((threads, 1, 4 * threads))),
            "parts": (1, *parts),
            "ahead": (8, 0, 16),
            "order": ("dynamic", "static"),
        }
        changes = tuple({"ranges": 1, "parts": count} for count in parts)
        return common.seeded(choices, *changes, {"ranges": 4 * threads}, {"ahead": 16})

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: ScatterPlan = match.plan
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        if language == "cpp":
            return cpp.kernel_of(plan, arguments, schedule)
        if language == "triton" and schedule.get("atomic"):
            return extremes.kernel_of(plan, arguments, schedule)
        if language == "triton" and schedule.get("exact"):
            return exact.kernel_of(plan, arguments, schedule)
        if language == "triton" and schedule.get("crowded"):
            return crowded.kernel_of(plan, arguments, schedule)
        if language == "triton" and schedule["room"]:
            return slots.kernel_of(plan, arguments, schedule)
        if language == "triton":
            return triton.kernel_of(plan, arguments, schedule)
        raise EmissionError(f"no {language} kernels of scatters")


def _match(graph: torch.fx.Graph, core: torch.fx.Node, device: str, cores: set[torch.fx.Node]) -> Match:
    inside = common.absorbable(graph, (core,)) - cores
    builder = ExpressionBuilder(device, lambda node: node in inside)
    scatter = read(core, builder)
    common.check_acyclic(builder.inputs, (core,))
    if any(common.elements(node) == math.inf for node in (*builder.inputs, core)):
        raise UnsupportedError("dynamic", "a size depends on data")
    for node in core.all_input_nodes:
        # What the operator is given and a kernel has no use for.
        if node not in builder.inlined:
            builder.input_index(node)
    inputs, results = common.specs_of(builder.inputs), common.specs_of((core,))
    known = [size for size in (scatter.events, *(size for _, size in scatter.inner)) if isinstance(size, int)]
    total = max(math.prod(known), *(common.elements(node) for node in (*builder.inputs, core)))
    if common.elements(core) == 0 or total < _LEAST_ELEMENTS:
        raise UnsupportedError("size", f"{total:g} elements are too few for a kernel of their own")
    return Match(
        family=ScatterFamily.name,
        nodes=common.in_graph_order(graph, [*builder.inlined, core]),
        inputs=tuple(builder.inputs),
        outputs=(core,),
        region_class="hot",
        plan=ScatterPlan(scatter, inputs, results, common.symbols_of((*inputs, *results))),
        flops=(operator_flops(scatter.value) + 1) * math.prod(known),
    )


def _check_gpu(match: Match) -> None:
    """Raises ``UnsupportedError`` where a GPU's kernel does not fit or is not worth its launches."""
    scatter: Scatter = match.plan.built
    events, rows = _hints(match)
    width = elements_of(scatter)
    least, shortest = _LEAST_EXTREMES if extremes.is_offered(match.plan) else _LEAST_ON_GPU, _LEAST_ROW
    if exact.is_offered(match.plan) and stored_precision(match.plan) is not None:
        least, shortest = _LEAST_EXACT, 1
    if target_name(match.outputs[0]) in BAG_GRADIENTS:
        least = _LEAST_BAGGED
    if width < shortest or events * width < least:
        raise UnsupportedError("size", f"{events} rows of {width} elements are added as fast one by one")
    if max(events, rows) >= MOST_NUMBERED:
        raise UnsupportedError("size", "events or rows cannot be numbered in 32 bits")
    exprs = (*scatter.places, scatter.value, scatter.base, *(() if scatter.condition is None else (scatter.condition,)))
    if any(part.op == "bucketize" for expr in exprs for part in ex.walk(expr)):
        raise UnsupportedError("structure", "a search among borders is left outside")


def _hints(match: Match) -> tuple[int, int]:
    """Numbers of events and of rows at the sizes seen."""
    sizes = {
        name: hint_of(value)
        for node in (*match.inputs, *match.outputs)
        for value in (*tensor_of(node).shape, *tensor_of(node).stride())
        for name in (str(value),)
        if not isinstance(value, int)
    }
    scatter: Scatter = match.plan.built
    return evaluate(scatter.events, sizes), evaluate(product(scatter.rows), sizes)
