"""The family of stencils: depthwise convolutions, pooling, and their gradients by their inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.meta import hint_of, target_name, tensor_of
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression.printer import operator_flops
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from ..cores import cores_of, regions_around
from . import cpp, triton, weights_cpp, weights_triton
from .operators import BACKWARD, is_stencil
from .plan import StencilPlan
from .spaces import cpu_space, gpu_space
from .structure import Surroundings, read, repeated_flops
from .weights import BackwardPlan, read_weights, weight_plan

# Fewer elements than this are not worth a kernel of their own.
_LEAST_ELEMENTS = 1024
# What is computed from the source is left to its producer if taps that share elements would repeat more than this.
_MOST_REPEATED = 48


class StencilsFamily(Family):
    name: ClassVar[str] = "stencils"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        cores = cores_of(graph, is_stencil, device)
        if cores:
            yield from regions_around(cores, Surroundings(graph), device, self.name, _match, _unfit)

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        plan: StencilPlan | BackwardPlan = match.plan
        sizes = _hints(match)
        return cpu_space(plan, sizes, target) if target.platform == "cpu" else gpu_space(plan)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: StencilPlan | BackwardPlan = match.plan
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        stencil, weights = (plan.stencil, plan.weights) if isinstance(plan, BackwardPlan) else (plan, None)
        if language == "cpp":
            texts, names = [], []
            if stencil is not None:
                texts, names = [cpp.stencil_text(stencil, schedule)], ["kevolve_kernel"]
            if weights is not None:
                texts.append(weights_cpp.weights_text(weights, schedule))
                names.append("kevolve_weights")
            return Kernel("cpp", cpp.source_of(schedule, *texts), tuple(Launch(name, arguments) for name in names))
        if language == "triton":
            parts = [triton.stencil_text(stencil, arguments, schedule)] if stencil is not None else []
            parts += [weights_triton.weights_text(weights, arguments, schedule)] if weights is not None else []
            return triton.assembled(parts)
        raise EmissionError(f"no {language} kernels of stencils")


def _match(around: Surroundings, core: torch.fx.Node, device: str, alone: bool) -> Match:
    sums = _sums(core)
    for lean in (False, True):
        reader, outputs = read(around, core, device, alone, lean)
        every = common.in_graph_order(around.graph, [*outputs, *sums.values()])
        if not every:
            raise UnsupportedError("structure", f"nothing of {core} is used")
        reading = read_weights(reader.builder, core) if sums else None
        stencil = reader.plan(outputs, every) if outputs else None
        if stencil is None or repeated_flops(stencil) <= _MOST_REPEATED:
            break
    inputs = reader.builder.inputs
    common.check_acyclic(inputs, every)
    plan: StencilPlan | BackwardPlan | None = stencil
    if reading is not None:
        plan = BackwardPlan(stencil, weight_plan(reading, sums.get(1), sums.get(2), every, inputs))
    if any(common.elements(node) == math.inf for node in (*inputs, *every)):
        raise UnsupportedError("dynamic", "a size depends on data")
    nodes = common.in_graph_order(around.graph, [*reader.builder.inlined, *reader.used, *sums.values()])
    return Match(StencilsFamily.name, nodes, tuple(inputs), every, "long tail", plan, _flops(stencil))


def _sums(core: torch.fx.Node) -> dict[int, torch.fx.Node]:
    """The gradients of a convolution's weight (1) and bias (2), as far as they are asked for."""
    if target_name(core) != BACKWARD:
        return {}
    return {int(user.args[1]): user for user in core.users if target_name(user) == "getitem" and user.args[1] in (1, 2)}  # type: ignore[arg-type]


def _flops(stencil: StencilPlan | None) -> int:
    """What is dynamic counts as one, and sums as nothing, since a floor must not be too high."""
    if stencil is None:
        return 0
    steps = stencil.taps * (1 + operator_flops(stencil.term)) + sum(operator_flops(s.value) for s in stencil.stores)
    return steps * math.prod(extent for _, extent in stencil.axes if isinstance(extent, int))


def _hints(match: Match) -> dict[str, int]:
    """Extents at the sizes seen, by axis."""
    plan: StencilPlan | BackwardPlan = match.plan
    if isinstance(plan, BackwardPlan):
        axes = plan.stencil.axes if plan.stencil is not None else (plan.weights.channel, *plan.weights.axes)
        return {name: int(extent) for name, extent in axes}
    shape = tensor_of(match.outputs[0]).shape
    # Axes are called after the dimension of the first output that they are.
    return {name: hint_of(shape[int(name.rpartition("_")[2])]) for name, _ in plan.axes}


def _unfit(match: Match) -> Rejection | None:
    total = math.prod(_hints(match).values())
    if total == 0 or any(common.elements(node) == 0 for node in match.inputs):
        return Rejection("size", "nothing to compute", match.family, match.nodes)
    if total < _LEAST_ELEMENTS:
        return Rejection("size", f"{total} elements are too few for a kernel of their own", match.family, match.nodes)
    return None
