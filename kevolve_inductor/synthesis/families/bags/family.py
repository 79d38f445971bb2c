"""The family of embedding bags: rows gathered by index and pooled, with what is computed before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.meta import target_name
from ....graph.region import ITEM_SIZES
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression import ExpressionBuilder
from ...expression.printer import operator_flops
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from ..features.selection import components, levels
from .cpp import source_of
from .groups import Group, grouped
from .plan import Bag, BagsPlan, extents, fused, gathers
from .selection import BAGS, cores_of, inlinable, members_of
from .structure import Reader
from .triton import columns_of, kernel_of

# Fewer elements than this, gathered in all, are not worth a kernel of their own.
_LEAST_ELEMENTS = 4096
# Pointers are kernel arguments, of which CUDA takes 4096 bytes at least.
_MOST_POINTERS = 400
# Positions ahead at which a CPU fetches rows at most.
_FARTHEST = 16
# Bags that a thread takes at once.
_BLOCKS = (256, 64, 16, 4)
_MANY = 1024
# Rows of one bag that a program gathers at once, and what of them a thread may hold.
_MOST_POSITIONS = 32
_BYTES_OF_THREAD = 256


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
            return _gpu_space(match, len(groups_of(plan)) < len(plan.bags))
        return _cpu_space(plan, target.threads)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: BagsPlan = match.plan
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        groups = groups_of(plan)
        if language == "cpp":
            source = source_of(groups, plan.inputs, plan.outputs, plan.symbols, schedule)
            return Kernel("cpp", source, (Launch("kevolve_kernel", arguments),))
        if language == "triton":
            return kernel_of(groups, plan, arguments, schedule)
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


def _gpu_space(match: Match, many: bool) -> ScheduleSpace:
    plan: BagsPlan = match.plan
    longest = max(_positions(match), default=1)
    row_bytes = max(columns_of(bag) * _item_bytes(bag) for bag in plan.bags)
    # As many bytes of a row to a thread as one instruction loads, where a row has so many.
    warps = max(1, min(8, row_bytes // 512))
    most = max(4, min(_MOST_POSITIONS, _BYTES_OF_THREAD * 32 * warps // row_bytes))
    whole = math.ceil(longest / math.ceil(longest / most))
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "positions": tuple(dict.fromkeys(min(count, most, longest) for count in (whole, 8, 16, 4))),
        "bags": (1, 4, 2, 8, 16),
        "num_warps": tuple(dict.fromkeys((warps, 2 * warps, max(1, warps // 2)))),
    }
    if many:
        choices |= {"dispatch": ("select", "calls"), "order": ("tables", "bags")}
    changes: tuple[Schedule, ...] = (
        {"bags": 4},
        {"bags": 8},
        {"positions": 8, "bags": 4},
        {"order": "bags", "bags": 4},
        {"num_warps": 2 * warps},
        {"dispatch": "calls", "bags": 4, "positions": 8},
        {"positions": 16, "bags": 2},
    )
    return common.seeded(choices, *changes)


def _item_bytes(bag: Bag) -> int:
    """Bytes of the widest element that is gathered, at least two."""
    reads = [read for fold in bag.folds for read in gathers(fold.body) if bag.is_row(read)]
    return max((ITEM_SIZES[read.value[1]] for read in reads), default=2)


def _positions(match: Match) -> Iterator[int]:
    """How long bags are, on average where it varies, at the sizes seen."""
    for node in match.nodes:
        if target_name(node) in BAGS:
            indices, offsets = node.args[1:3]
            yield math.ceil(common.elements(indices) / max(common.elements(offsets), 1))  # type: ignore[arg-type]
    for loop in (loop for bag in match.plan.bags for loop in bag.loops):
        yield loop.span.length or 1


def groups_of(plan: BagsPlan) -> list[Group]:
    return grouped(plan.bags, [spec.dtype for spec in plan.outputs])


def _match(
    graph: torch.fx.Graph,
    device: str,
    nodes: Sequence[torch.fx.Node],
    cores: set[torch.fx.Node],
    members: set[torch.fx.Node],
) -> Match:
    own = set(nodes)
    inside, counts = inlinable(graph, own, own & cores, members - own)
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    builder = ExpressionBuilder(device, lambda node: node in inside)
    reader = Reader(builder, [*(own & cores), *counts], inside)
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
    total = sum(common.elements(node) for node in match.outputs) * max(_positions(match), default=1)
    if total < _LEAST_ELEMENTS:
        return Rejection("size", f"{total:g} elements are too few for a kernel of their own", match.family, match.nodes)
    return match
