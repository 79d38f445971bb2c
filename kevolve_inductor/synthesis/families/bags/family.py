"""The family of embedding bags: rows gathered by index and pooled, with what is computed before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.meta import target_name
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression import ExpressionBuilder
from ...expression.printer import operator_flops
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from ..features.selection import components, levels
from .cpp import source_of
from .groups import Group, grouped
from .plan import Bag, BagsPlan, extents, fused, joined
from .schedules import gpu_space
from .selection import BAGS, cores_of, inlinable, members_of
from .structure import Reader
from .triton import kernel_of

# Fewer elements than this, gathered in all, are not worth a kernel of their own.
_LEAST_ELEMENTS = 4096
# Pointers are kernel arguments, of which CUDA takes 4096 bytes at least.
_MOST_POINTERS = 400
# Positions ahead at which a CPU fetches rows at most.
_FARTHEST = 16
# Bags that a thread takes at once.
_BLOCKS = (256, 64, 16, 4)
_MANY = 1024


class BagsFamily(Family):
    name: ClassVar[str] = "bags"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        cores = cores_of(graph, device)
        if not cores:
            return
        members = members_of(graph, cores)
        for level in levels(graph, members):
            yield from self._regions(graph, device, level, cores, members)

    def _regions(
        self,
        graph: torch.fx.Graph,
        device: str,
        nodes: list[torch.fx.Node],
        cores: set[torch.fx.Node],
        members: set[torch.fx.Node],
    ) -> Iterator[Match | Rejection]:
        """One region of all ``nodes``; where that cannot be expressed, one of those pieces that can, perhaps cores alone."""
        try:
            yield _worth(_match(graph, device, nodes, cores, members))
            return
        except UnsupportedError as error:
            pieces = list(components(nodes))
            if len(pieces) == 1 and cores.issuperset(nodes):
                yield Rejection(error.code, error.message, self.name, tuple(nodes))  # type: ignore[arg-type]
                return
        usable: list[torch.fx.Node] = []
        for piece in pieces:
            for smaller in (piece, [node for node in piece if node in cores]):
                try:
                    _match(graph, device, smaller, cores, members)
                except UnsupportedError as error:
                    reason = error
                else:
                    usable += smaller
                    break
            else:
                yield Rejection(reason.code, reason.message, self.name, tuple(piece))  # type: ignore[arg-type]
        if usable:
            yield _worth(_match(graph, device, usable, cores, members))

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        plan: BagsPlan = match.plan
        if target.platform != "cpu":
            bags = joined(plan.bags)
            return gpu_space(bags, _longest(match), len(bags) < len(plan.bags), len(groups_of(plan, bags)) < len(bags))
        return _cpu_space(plan, target.threads)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: BagsPlan = match.plan
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        if language == "cpp":
            source = source_of(groups_of(plan, plan.bags), plan.inputs, plan.outputs, plan.symbols, schedule)
            return Kernel("cpp", source, (Launch("kevolve_kernel", arguments),))
        if language == "triton":
            bags = joined(plan.bags) if schedule.get("joined") else plan.bags
            return kernel_of(groups_of(plan, bags), plan, arguments, schedule, _longest(match))
        raise EmissionError(f"no {language} kernels of embedding bags")


def _cpu_space(plan: BagsPlan, threads: int) -> ScheduleSpace:
    longest = max((loop.span.length or _FARTHEST for bag in plan.bags for loop in bag.loops), default=0)
    # The largest blocks of which there are some for every thread; a dynamic number of bags is taken for many.
    bags = sum(math.prod(size if isinstance(size, int) else _MANY for size in extents(bag.axes)) for bag in plan.bags)
    enough = [block for block in _BLOCKS if bags >= 4 * threads * block] or [_BLOCKS[-1]]
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "ahead": tuple(dict.fromkeys(min(distance, longest) for distance in (8, 4, _FARTHEST, 0))),
        "block": tuple(dict.fromkeys((enough[0], *_BLOCKS))),
        "order": ("dynamic", "static"),
    }
    return common.seeded(choices, {"ahead": 0}, {"ahead": 4}, {"block": 64}, {"order": "static"}, {"ahead": _FARTHEST})


def _longest(match: Match) -> int:
    return max(1, *_positions(match))


def _positions(match: Match) -> Iterator[int]:
    """How long bags are, on average where it varies, at the sizes seen."""
    for node in match.nodes:
        if target_name(node) in BAGS:
            indices, offsets = node.args[1:3]
            yield math.ceil(common.elements(indices) / max(common.elements(offsets), 1))  # type: ignore[arg-type]
    for loop in (loop for bag in match.plan.bags for loop in bag.loops):
        yield loop.span.length or 1


def groups_of(plan: BagsPlan, bags: Sequence[Bag]) -> list[Group]:
    return grouped(bags, [spec.dtype for spec in plan.outputs])


def _match(
    graph: torch.fx.Graph,
    device: str,
    nodes: Sequence[torch.fx.Node],
    cores: set[torch.fx.Node],
    members: set[torch.fx.Node],
) -> Match:
    """With the reductions that what is pooled waits for, where they can be expressed."""
    own = set(nodes)
    early = inlinable(graph, own, own & cores, members - own, early=True)
    try:
        return _matched(graph, device, nodes, own & cores, *early)
    except UnsupportedError:
        late = inlinable(graph, own, own & cores, members - own, early=False)
        if early == late:
            raise
    return _matched(graph, device, nodes, own & cores, *late)


def _matched(
    graph: torch.fx.Graph,
    device: str,
    nodes: Sequence[torch.fx.Node],
    cores: set[torch.fx.Node],
    inside: set[torch.fx.Node],
    counts: set[torch.fx.Node],
) -> Match:
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    builder = ExpressionBuilder(device, lambda node: node in inside)
    reader = Reader(builder, [*cores, *counts], inside)
    bags = tuple(fused(bag for k, node in enumerate(outputs) for bag in reader.bags(node, k)))
    more = _arguments(reader, inside)
    common.check_acyclic(builder.inputs, outputs)
    if any(common.elements(node) == math.inf for node in (*builder.inputs, *outputs)):
        raise UnsupportedError("dynamic", "a size depends on data")
    inputs, results = common.specs_of(builder.inputs), common.specs_of(outputs)
    if len(inputs) + len(results) > _MOST_POINTERS:
        raise UnsupportedError("size", f"{len(inputs) + len(results)} tensors are more than a kernel takes")
    return Match(
        family=BagsFamily.name,
        nodes=common.in_graph_order(graph, [*builder.inlined, *reader.used, *more]),
        inputs=tuple(builder.inputs),
        outputs=tuple(outputs),
        region_class="hot",
        plan=BagsPlan(bags, inputs, results, common.symbols_of((*inputs, *results))),
        flops=sum(_flops(bag) for bag in bags),
    )


def _arguments(reader: Reader, inside: set[torch.fx.Node]) -> set[torch.fx.Node]:
    """Nodes of the region, and its inputs, that an operator takes although its bag has no need of them."""
    more: set[torch.fx.Node] = set()
    open_nodes = [source for node in reader.used for source in node.all_input_nodes]
    while open_nodes:
        node = open_nodes.pop()
        if node in reader.used or node in reader.builder.inlined or node in more:
            continue
        if node in inside:
            more.add(node)
            open_nodes += node.all_input_nodes
        else:
            reader.builder.input_index(node)
    return more


def _flops(bag: Bag) -> int:
    """What is dynamic counts as one, since a floor must not be too high."""
    known = math.prod(extent for _, extent in (*bag.axes, *bag.inner) if isinstance(extent, int))
    folded = sum((operator_flops(fold.body) + 1) * (loop.span.length or 1) for loop in bag.loops for fold in loop.folds)
    return known * (folded + sum(operator_flops(store.value) for store in bag.stores))


def _worth(match: Match) -> Match | Rejection:
    total = sum(common.elements(node) for node in match.outputs) * _longest(match)
    if total < _LEAST_ELEMENTS:
        return Rejection("size", f"{total:g} elements are too few for a kernel of their own", match.family, match.nodes)
    return match
