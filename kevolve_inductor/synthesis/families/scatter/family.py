"""The family of scatters: rows of events added to (or compared with) rows that data name, on CPUs.

A GPU adds rows with atomic operations, whose order and so whose sums differ from run to run; a kernel has to give the same
bits every time, so that there the operator is left to Inductor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.dims import product
from ....graph.meta import tensor_of
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression import ExpressionBuilder
from ...expression.printer import operator_flops
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from .cpp import source_of
from .plan import Scatter, ScatterPlan
from .structure import is_scatter, read

# Fewer elements than this, read in all, are not worth a kernel of their own.
_LEAST_ELEMENTS = 4096
# Columns that one thread takes at least, since rows are read by cache lines.
_LEAST_COLUMNS = 16


class ScatterFamily(Family):
    name: ClassVar[str] = "scatter"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        cores = [node for node in graph.nodes if is_scatter(node) and tensor_of(node).device.type == device]
        for core in cores:
            if device != "cpu":
                yield Rejection("platform", f"{core} would add in an order of its own each time", self.name, (core,))
                continue
            try:
                yield _match(graph, core, device, set(cores))
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, (core,))  # type: ignore[arg-type]

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        scatter: Scatter = match.plan.built
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
        if language != "cpp":
            raise EmissionError(f"no {language} kernels of scatters")
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        return Kernel("cpp", source_of(plan, schedule), (Launch("kevolve_kernel", arguments),))


def _match(graph: torch.fx.Graph, core: torch.fx.Node, device: str, cores: set[torch.fx.Node]) -> Match:
    inside = common.absorbable(graph, (core,)) - cores
    builder = ExpressionBuilder(device, lambda node: node in inside)
    scatter = read(core, builder)
    common.check_acyclic(builder.inputs, (core,))
    if any(common.elements(node) == math.inf for node in (*builder.inputs, core)):
        raise UnsupportedError("dynamic", "a size depends on data")
    for node in core.all_input_nodes:
        if node not in inside:
            builder.input_index(node)
    inputs, results = common.specs_of(builder.inputs), common.specs_of((core,))
    total = max(common.elements(node) for node in (*builder.inputs, core))
    if common.elements(core) == 0 or total < _LEAST_ELEMENTS:
        raise UnsupportedError("size", f"{total:g} elements are too few for a kernel of their own")
    known = [size for size in (scatter.events, *(size for _, size in scatter.inner)) if isinstance(size, int)]
    return Match(
        family=ScatterFamily.name,
        nodes=common.in_graph_order(graph, [*builder.inlined, core]),
        inputs=tuple(builder.inputs),
        outputs=(core,),
        region_class="hot",
        plan=ScatterPlan(scatter, inputs, results, common.symbols_of((*inputs, *results))),
        flops=(operator_flops(scatter.value) + 1) * math.prod(known),
    )
