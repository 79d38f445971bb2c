"""The family of jagged tensors: truncation and padding to dense, pooling of rows, sums by offsets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.region import ITEM_SIZES
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.printer import operator_flops
from ...expression.remainder import is_integer_division
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from ..bags.tiles import balanced
from ..triton_tiles import next_power_of_2
from .cpp import source_of
from .plan import POSITION, Dense, JaggedPlan, JaggedTask, Reduce
from .structure import Reader, Scan, inlinable, is_tensor, pieces
from .triton import launches_of

# Fewer elements than this, read or written, are not worth a kernel of their own.
_LEAST_ELEMENTS = 1024
# Events of a row whose length is not known.
_USUAL_LENGTH = 16
# Bytes that a lane has in flight at most, and the elements of a position that it holds in most schedules.
_MOST_BYTES, _ELEMENTS = 256, 8


class JaggedFamily(Family):
    name: ClassVar[str] = "jagged"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        scan = Scan(graph, device)
        found = list(pieces(scan, pools=True))
        members = {node for piece in found for node in piece}
        for piece in found:
            try:
                match = _match(scan, piece, members)
            except UnsupportedError as error:
                yield from self._without_pools(scan, piece, members, error)
                continue
            yield _too_small(match) or match

    def _without_pools(
        self, scan: Scan, piece: list[torch.fx.Node], members: set[torch.fx.Node], error: UnsupportedError
    ) -> Iterator[Match | Rejection]:
        """Up to the reductions only, where what lies behind them cannot be expressed."""
        inside = set(piece)
        smaller = [other for other in pieces(scan, pools=False) if inside.issuperset(other)]
        if [set(other) for other in smaller] == [inside]:
            smaller = []
        if not smaller:
            yield Rejection(error.code, error.message, self.name, tuple(piece))  # type: ignore[arg-type]
        for other in smaller:
            try:
                match = _match(scan, other, (members - inside) | set(other))
            except UnsupportedError as again:
                yield Rejection(again.code, again.message, self.name, tuple(other))  # type: ignore[arg-type]
            else:
                yield _too_small(match) or match

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        plan: JaggedPlan = match.plan
        choices: dict[str, tuple[int | str | bool, ...]] = {}
        divides = any(is_integer_division(part) for t in plan.tasks for e in t.exprs for part in ex.walk(e))
        if target.platform == "cpu":
            if any(isinstance(task, Dense) for task in plan.tasks):
                choices["runs"] = ("masked", "split") if _narrow(plan) else ("split", "masked")
            if divides:
                wide = "avx512f" in target.features
                choices["remainder"] = ("reciprocal", "native") if wide else ("native", "reciprocal")
            choices |= {"rows": (256, 64, 1024), "order": ("dynamic", "static")}
            return common.seeded(choices, {"runs": "split"}, {"runs": "masked"}, {"rows": 1024, "order": "static"})
        return _gpu_space(plan, divides)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: JaggedPlan = match.plan
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        if language == "cpp":
            return Kernel("cpp", source_of(plan, schedule), (Launch("kevolve_kernel", arguments),))
        if language == "triton":
            return launches_of(plan, arguments, schedule)
        raise EmissionError(f"no {language} kernels of jagged tensors")


def _gpu_space(plan: JaggedPlan, divides: bool) -> ScheduleSpace:
    choices: dict[str, tuple[int | str | bool, ...]] = {"remainder": ("multiply", "native")} if divides else {}
    changes: list[Schedule] = [{"tile": 2048}]
    lengths = [task.length for task in plan.tasks if isinstance(task, Dense)]
    if lengths:
        choices["positions"] = _by_waste(max(lengths))
        whole: Schedule = {"positions": 64, "tile": 4096, "num_warps": 8}
        changes += [whole, {"tile": 2048, "num_warps": 8}, {"positions": 4}]
    columns: tuple[int, ...] = (64, 128, 32, 256)
    reductions = [task for task in plan.tasks if isinstance(task, Reduce)]
    if reductions:
        choices["events"] = (1, 4, 16)
        choices["steps"] = _in_flight(reductions)
        if not lengths:
            columns = _columns(reductions)
        changes += _reduction_changes(choices["steps"], columns)
    choices |= {"tile": (1024, 512, 2048, 4096), "columns": columns, "num_warps": (4, 2, 8)}
    return common.seeded(choices, *changes)


def _reduction_changes(steps: Sequence[int | str | bool], columns: Sequence[int]) -> Iterator[Schedule]:
    """Fewer positions in flight, and tiles of which a lane holds less; then parts of a row, or several positions at a time."""
    fewer = steps[min(1, len(steps) - 1)]
    yield {"tile": 512, "steps": fewer}
    yield {"tile": 512}
    yield {"steps": fewer}
    yield {"tile": 512, "num_warps": 2}
    yield {"tile": 2048, "steps": fewer}
    yield {"steps": 1}
    yield {"tile": 512, "steps": 1}
    yield {"events": 4, "steps": 1}
    yield {"columns": columns[1], "tile": 512, "steps": fewer}
    yield {"columns": columns[1]}
    yield {"columns": columns[1], "steps": 1}


def _columns(tasks: Sequence[Reduce]) -> tuple[int, ...]:
    """A whole row first, since its parts lie side by side in memory; then those that leave no lane of a tile without any."""
    inner = [math.prod(e for _, e in task.inner if isinstance(e, int)) for task in tasks]
    common_part = math.gcd(*inner)
    even = common_part & -common_part
    whole = min(256, max(32, next_power_of_2(max(inner))))
    return tuple(dict.fromkeys((whole, *((even,) if _ELEMENTS <= even < whole else ()), 64, 128, 32, 256)))


def _in_flight(tasks: Sequence[Reduce]) -> tuple[int, ...]:
    """Positions of a row that a lane reads at once: evenly many each time around where all rows are equally long."""
    longest = max((task.length or _USUAL_LENGTH for task in tasks), default=_USUAL_LENGTH)
    most = _MOST_BYTES // (_ELEMENTS * max(map(_item_bytes, tasks)))
    return tuple(dict.fromkeys(balanced(longest, max(1, number)) for number in (most, most // 2, most // 4, 1)))


def _item_bytes(task: Reduce) -> int:
    """Bytes of the widest element that is read for every inner index."""
    axes = {name for name, _ in task.inner}
    reads = [part for part in ex.walk(task.body) if part.op == "read" and POSITION in ex.variables(part)]
    wide = [read for read in reads if not axes.isdisjoint(ex.variables(read))]
    return max((ITEM_SIZES[read.value[1]] for read in wide or reads), default=2)


def _match(scan: Scan, piece: list[torch.fx.Node], members: set[torch.fx.Node]) -> Match:
    inside = inlinable(scan, piece, members - set(piece))
    outputs = [node for node in piece if any(user not in inside for user in node.users)]
    builder = ExpressionBuilder(scan.device, lambda node: node in inside)
    reader = Reader(builder, piece)
    tasks = tuple(reader.task(node, k) for k, node in enumerate(outputs))
    used = {source for node in reader.used for source in node.all_input_nodes if is_tensor(source)}
    for source in sorted(used - inside - set(reader.used), key=str):
        builder.input_index(source)
    common.check_acyclic(builder.inputs, outputs)
    if any(common.elements(node) == math.inf for node in (*builder.inputs, *outputs)):
        raise UnsupportedError("dynamic", "a size depends on data")
    inputs, results = common.specs_of(builder.inputs), common.specs_of(outputs)
    plan = JaggedPlan(tasks, inputs, results, common.symbols_of((*inputs, *results)))
    nodes = common.in_graph_order(scan.graph, [*builder.inlined, *reader.used])
    flops = sum(_flops(task) for task in tasks)
    return Match(JaggedFamily.name, nodes, tuple(builder.inputs), tuple(outputs), "long tail", plan, flops)


def _flops(task: JaggedTask) -> int:
    if isinstance(task, Dense):
        return operator_flops(task.value) * math.prod(_known(task))
    positions = 1 if task.length is None else task.length
    return (operator_flops(task.body) + 1) * positions * math.prod(_known(task))


def _known(task: JaggedTask) -> list[int]:
    """Static extents; what is dynamic counts as one, since a floor must not be too high."""
    extents = [task.rows[1], task.length if isinstance(task, Dense) else 1, *(extent for _, extent in task.inner)]
    return [extent for extent in extents if isinstance(extent, int)]


def _too_small(match: Match) -> Rejection | None:
    if min(common.elements(node) for node in match.outputs) == 0:
        return Rejection("size", "nothing to compute", match.family, match.nodes)
    most = max(common.elements(node) for node in (*match.inputs, *match.outputs))
    if most < _LEAST_ELEMENTS:
        return Rejection("size", f"{most} elements are too few for a kernel of their own", match.family, match.nodes)
    return None


def _by_waste(length: int) -> tuple[int, ...]:
    """Positions per tile: those that leave the least of a row's last tile empty first, and of these the widest."""
    return tuple(sorted((16, 8, 4, 32, 64, 1), key=lambda positions: (-(-length // positions) * positions, -positions)))


def _narrow(plan: JaggedPlan) -> bool:
    """Rows so short that branches on their lengths cost more than reading under a mask."""
    widths = [
        t.length * math.prod(e for _, e in t.inner if isinstance(e, int)) for t in plan.tasks if isinstance(t, Dense)
    ]
    return max(widths, default=0) <= 256
