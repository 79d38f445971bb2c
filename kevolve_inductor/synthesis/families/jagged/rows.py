"""Which row an event belongs to, where a graph computes that by searching offsets: read backwards, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch.fx

from ....graph.dims import Dim
from ....graph.meta import dim_of, shape_of, target_name
from ...expression import ExpressionBuilder, is_constant, is_expressible, is_view
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.views import VIEWS

_RESHAPES = ("aten.unsqueeze.default", "aten.expand.default", "aten.view.default", "aten.reshape.default",
             "aten.clone.default", "aten.alias.default")  # fmt: skip
_CONVERSIONS = ("prims.convert_element_type.default", "aten._to_copy.default")
_SEARCHES = ("aten.searchsorted.Tensor", "aten.bucketize.Tensor", "aten.repeat_interleave.Tensor")


@dataclass(frozen=True)
class RowMap:
    """Event ``e`` is in row ``min(number of borders at or below e + shift, last)``; ``last`` may be absent.

    ``border(k)`` is the k-th of ``count`` borders, also for ``k = -1`` where ``has_previous``. With ``right`` unset borders
    equal to ``e`` do not count.
    """

    border: Callable[[Expr], Expr]
    count: Dim
    right: bool
    shift: int
    clamped: bool
    has_previous: bool
    events: Dim

    def start(self, row: Expr) -> Expr:
        """The first event of ``row``, within ``[0, events]``."""
        at = ex.iadd(row, ex.index(-1 - self.shift))
        if self.shift == -1 or self.has_previous:
            return self._clipped(self.border(at))
        first = ex.make("eq", "bool", (row, ex.index(0)))
        before = self._clipped(self.border(ex.make("within", "int64", (at,), (self.count,))))
        return ex.make("where", "int64", (first, ex.index(0), before))

    def end(self, row: Expr, rows: Dim) -> Expr:
        """The event after the last one of ``row``."""
        after = self._clipped(self.border(ex.iadd(row, ex.index(-self.shift))))
        if not self.clamped:
            return after
        last = ex.make("eq", "bool", (row, ex.iadd(ex.size(rows), ex.index(-1))))
        return ex.make("where", "int64", (last, ex.size(self.events), after))

    def leading(self) -> Expr | None:
        """The number of events before the first row: their row is -1, which wraps to the last one."""
        return self._clipped(self.border(ex.index(0))) if self.shift == -1 else None

    def is_complete(self, rows: Dim) -> bool:
        """Is there a border, or a clamp, behind every row?"""
        return self.clamped or difference(self.count, rows) == -self.shift

    def has_trailing(self, rows: Dim) -> Expr | None:
        """Whether events follow the last row, which eager refuses."""
        if self.clamped:
            return None
        last = ex.iadd(ex.size(rows), ex.index(-1 - self.shift))
        return ex.make("lt", "bool", (self._clipped(self.border(last)), ex.size(self.events)))

    def _clipped(self, border: Expr) -> Expr:
        value = ex.cast(border, "int64")
        if not self.right:
            value = ex.iadd(value, ex.index(1))
        bounded = ex.make("minimum", "int64", (value, ex.size(self.events)))
        return ex.make("maximum", "int64", (bounded, ex.index(0)))


def difference(a: Dim, b: Dim) -> int | None:
    """``a - b`` where it is the same for all sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    apart = sympy.sympify(f"({a}) - ({b})")
    return int(apart) if apart.is_Integer else None


def read_row_map(
    builder: ExpressionBuilder, node: torch.fx.Node, rows: Dim
) -> tuple[RowMap, list[torch.fx.Node]] | None:
    """The row map that ``node`` computes for events ``0, 1, …``, and the nodes it is made of; ``None`` for another value."""
    used: list[torch.fx.Node] = []
    shift, clamped = 0, False
    current: Any = node
    while isinstance(current, torch.fx.Node) and target_name(current) not in _SEARCHES:
        name = target_name(current)
        used.append(current)
        if name in _CONVERSIONS or (name in _RESHAPES and _keeps_events(current)):
            current = current.args[0]
        elif name == "aten.index.Tensor" and _is_count(current.args[0]) and len(current.args[1]) == 1:  # type: ignore[arg-type]
            used.append(current.args[0])  # type: ignore[arg-type]
            current = current.args[1][0]  # type: ignore[index]
        elif name == "aten.clamp_max.default" and _is_last(current.args[1], rows) and shift == 0:
            clamped, current = True, current.args[0]
        elif name in ("aten.sub.Tensor", "aten.add.Tensor") and current.args[1] == (1 if "sub" in name else -1):
            shift, current = shift - 1, current.args[0]
        else:
            return None
    if not isinstance(current, torch.fx.Node) or shift < -1 or (clamped and shift):
        return None
    found = _search(builder, current, shift, clamped)
    return None if found is None else (found[0], [*used, *found[1]])


def _keeps_events(node: torch.fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, torch.fx.Node) and shape_of(source)[:1] == shape_of(node)[:1]


def _is_count(node: Any) -> bool:
    """0, 1, 2, … as a vector."""
    if not isinstance(node, torch.fx.Node) or not is_constant(node):
        return False
    name = target_name(node)
    if name == "prims.iota.default":
        return (node.kwargs.get("start", 0), node.kwargs.get("step", 1)) == (0, 1)
    if name == "aten.arange.start_step":
        return (node.args[0], *node.args[2:3]) in ((0,), (0, 1))
    return name == "aten.arange.default"


def _is_last(value: Any, rows: Dim) -> bool:
    is_size = isinstance(value, (int, torch.fx.Node, torch.SymInt)) and not isinstance(value, bool)
    return is_size and difference(dim_of(value), rows) == -1


def _search(
    builder: ExpressionBuilder, node: torch.fx.Node, shift: int, clamped: bool
) -> tuple[RowMap, list[torch.fx.Node]] | None:
    if target_name(node) == "aten.repeat_interleave.Tensor":
        return _repeated(builder, node, shift, clamped)
    borders, values = node.args[:2] if "searchsorted" in target_name(node) else reversed(node.args[:2])
    if not _is_count(values) or not isinstance(borders, torch.fx.Node) or len(shape_of(borders)) != 1:
        return None
    assert isinstance(values, torch.fx.Node)
    right = bool(node.kwargs.get("right", False)) or node.kwargs.get("side") == "right"
    events, count = shape_of(values)[0], shape_of(borders)[0]
    offsets = _telescoped(builder, borders)
    if offsets is None:
        source = borders
        return RowMap(lambda k: builder.build(source, (k,)), count, right, shift, clamped, False, events), [
            node,
            values,
        ]
    border, used = offsets
    return RowMap(border, count, right, shift, clamped, True, events), [node, values, borders, *used]


def _repeated(
    builder: ExpressionBuilder, node: torch.fx.Node, shift: int, clamped: bool
) -> tuple[RowMap, list[torch.fx.Node]] | None:
    """``repeat_interleave(lengths)``, where the lengths are differences of offsets."""
    lengths = node.args[0]
    offsets = _summed(builder, lengths) if isinstance(lengths, torch.fx.Node) and not shift else None
    if offsets is None or not isinstance(lengths, torch.fx.Node):
        return None
    border, used = offsets
    return RowMap(border, shape_of(lengths)[0], True, shift, clamped, True, shape_of(node)[0]), [node, *used]


def _telescoped(
    builder: ExpressionBuilder, node: torch.fx.Node
) -> tuple[Callable[[Expr], Expr], list[torch.fx.Node]] | None:
    """A running sum of differences of neighbouring offsets: ``offsets[k + 1] - offsets[0]``."""
    if target_name(node) != "aten.cumsum.default" or not isinstance(node.args[0], torch.fx.Node):
        return None
    return _summed(builder, node.args[0])


def _summed(
    builder: ExpressionBuilder, difference: torch.fx.Node
) -> tuple[Callable[[Expr], Expr], list[torch.fx.Node]] | None:
    """The sums of the first ``k + 1`` elements of ``difference``, where these are differences of neighbouring offsets."""
    if target_name(difference) != "aten.sub.Tensor" or len(difference.args) > 2 or difference.kwargs:
        return None
    high, low = difference.args[:2]
    if not isinstance(high, torch.fx.Node) or not isinstance(low, torch.fx.Node):
        return None
    at = ex.var("border", shape_of(difference)[0])
    above, place_above, used_above = _located(high, at)
    below, place_below, used_below = _located(low, at)
    if above is not below or len(shape_of(above)) != 1 or ex.distance(place_below, place_above) != 1:
        return None
    offset = ex.distance(at, place_below)
    if offset is None:
        return None
    source, first = above, offset

    def border(k: Expr) -> Expr:
        here = ex.cast(builder.load(source, (ex.iadd(k, ex.index(1 + first)),)), "int64")
        return ex.make("sub", "int64", (here, ex.cast(builder.load(source, (ex.index(first),)), "int64")))

    return border, [difference, *used_above, *used_below]


def _located(node: torch.fx.Node, at: Expr) -> tuple[torch.fx.Node, Expr, list[torch.fx.Node]]:
    """The vector that ``node`` is a view of, the place there of its element ``at``, and the views between."""
    index: tuple[Expr, ...] = (at,)
    views = []
    while is_view(node) and is_expressible(node):
        views.append(node)
        node, index = VIEWS[target_name(node)](node, index)
    return node, index[0], views
