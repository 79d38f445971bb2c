"""Writes to computed places, read backwards: which event, if any, lands on a given element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import shape_of, target_name
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from .plan import Span
from .rows import RowMap, difference, read_row_map
from .windows import at_position, slope

Index = tuple[Expr, ...]
_EVENT = "event"
_ROW_OF_EVENT = "row_of_event"


@dataclass(frozen=True)
class Placed:
    """What a scatter leaves at an index, and the conditions on the row under which eager raises."""

    value: Expr
    fails: tuple[Expr, ...]


class Scatter:
    """``index_put(fill, [row, column], values)`` where ``row`` rises with the event and ``column`` counts within the row.

    Raises ``UnsupportedError("structure")`` when made from anything else.
    """

    def __init__(self, builder: ExpressionBuilder, node: torch.fx.Node) -> None:
        self.builder, self.node = builder, node
        self.fill, indices, self.values = _arguments(node)
        shape = shape_of(node)
        if len(indices) != 2 or any(index is None for index in indices) or not isinstance(shape[1], int):
            raise UnsupportedError("structure", f"{node} does not write by row and column")
        self.rows, self.width = shape[0], shape[1]
        found = read_row_map(builder, indices[0], self.rows)
        if found is None or not found[0].is_complete(self.rows):
            raise UnsupportedError("structure", f"the rows that {node} writes to do not come from offsets")
        self.row_map, self.used = found
        given = shape_of(self.values)
        if given[1:] != shape[2:] or not given or difference(given[0], self.row_map.events) != 0:
            raise UnsupportedError("structure", f"{node} broadcasts its values")
        self.shift, self.capped = self._column(indices[0], indices[1])

    def _column(self, row: torch.fx.Node, column: torch.fx.Node) -> tuple[Expr, bool]:
        """``column`` is the event minus this expression of the row, perhaps held at the last column."""
        # Without an extent, so that every use as an index is checked: a row may be -1 before it wraps.
        self.builder.bind(row, lambda _: ex.var(_ROW_OF_EVENT))
        at = self.builder.build(column, (ex.var(_EVENT, self.row_map.events),))
        capped = at.op == "minimum" and at.args[1].op == "const" and at.args[1].value == self.width - 1
        at = ex.cast(at.args[0] if capped else at, "int64")
        if slope(at, _EVENT) != 1 or (at.op == "minimum"):
            raise UnsupportedError("structure", f"the columns that {self.node} writes to do not count events")
        return ex.make("neg", "int64", (at_position(at, _EVENT, ex.index(0)),)), capped

    def at(self, index: Index) -> Placed:
        """Later events win over earlier ones, as on the CPU in eager; on GPUs eager leaves it open."""
        row, column = index[:2]
        if self.capped and not _below(column, self.width - 1):
            raise UnsupportedError("structure", f"the last column of {self.node} holds the last of several values")
        base = self._base(row)
        start, end = self.row_map.start(row), self.row_map.end(row, self.rows)
        event = ex.iadd(base, column)
        wrapped = ex.iadd(event, ex.index(-self.width))
        value = self.builder.build(self.fill, index) if self.fill is not None else ex.index(0)
        leading = self.row_map.leading()
        if leading is not None:
            is_last = ex.make("eq", "bool", (row, ex.iadd(ex.size(self.rows), ex.index(-1))))
            early = ex.iadd(self._base(ex.index(-1)), column)
            for at in (ex.iadd(early, ex.index(-self.width)), early):
                value = self._chosen(at, ex.index(0), leading, index, value, is_last)
        # Columns below zero count from the end.
        value = self._chosen(wrapped, start, end, index, value, ex.make("gt", "bool", (base, start)))
        value = self._chosen(event, start, end, index, value)
        return Placed(value, self._fails(base, start, end))

    def _base(self, row: Expr) -> Expr:
        """The event that would stand in column 0 of ``row``."""
        return ex.substitute(self.shift, lambda e: row if e.op == "var" and e.value[0] == _ROW_OF_EVENT else None)

    def _chosen(
        self, event: Expr, start: Expr, end: Expr, index: Index, other: Expr, where: Expr | None = None
    ) -> Expr:
        inside = ex.make(
            "logical_and", "bool", (ex.make("ge", "bool", (event, start)), ex.make("lt", "bool", (event, end)))
        )
        if where is not None:
            inside = ex.make("logical_and", "bool", (where, inside))
        at = ex.make("within", "int64", (event,), (self.row_map.events,))
        value = ex.cast(self.builder.build(self.values, (at, *index[2:])), other.dtype)
        return ex.make("where", other.dtype, (inside, value, other))

    def _fails(self, base: Expr, start: Expr, end: Expr) -> tuple[Expr, ...]:
        """Columns beyond either end."""
        filled = ex.make("lt", "bool", (start, end))
        below = ex.make("lt", "bool", (ex.iadd(start, ex.index(self.width)), base))
        outside = below
        if not self.capped:
            beyond = ex.make("gt", "bool", (end, ex.iadd(base, ex.index(self.width))))
            outside = ex.make("logical_or", "bool", (below, beyond))
        fails = [ex.make("logical_and", "bool", (filled, outside))]
        trailing = self.row_map.has_trailing(self.rows)
        return (*fails, trailing) if trailing is not None else tuple(fails)


def _below(column: Expr, limit: int) -> bool:
    bound = ex.upper_bound(column)
    return isinstance(bound, int) and bound <= limit


def _arguments(node: torch.fx.Node) -> tuple[torch.fx.Node, list[Any], torch.fx.Node]:
    fill, indices, values = node.args[:3]
    assert isinstance(fill, torch.fx.Node) and isinstance(values, torch.fx.Node)
    return fill, list(indices), values  # type: ignore[arg-type]


@dataclass(frozen=True)
class Segments:
    """A sum by rows: the spans of events of a row, and the conditions under which eager raises."""

    values: torch.fx.Node
    fill: torch.fx.Node
    used: tuple[torch.fx.Node, ...]
    row_map: RowMap
    rows: Dim

    def spans(self, row: Expr) -> tuple[Span, ...]:
        own = Span(self.row_map.start(row), self.row_map.end(row, self.rows))
        leading = self.row_map.leading()
        if leading is None:
            return (own,)
        is_last = ex.make("eq", "bool", (row, ex.iadd(ex.size(self.rows), ex.index(-1))))
        return (Span(ex.index(0), ex.make("where", "int64", (is_last, leading, ex.index(0)))), own)

    def fails(self) -> tuple[Expr, ...]:
        trailing = self.row_map.has_trailing(self.rows)
        return () if trailing is None else (trailing,)


def read_segments(builder: ExpressionBuilder, node: torch.fx.Node) -> Segments:
    """``index_put(fill, [row], values, True)``, ``index_add`` or ``scatter_add`` by rows that rise with the event."""
    name = target_name(node)
    if name == "aten.index_put.default":
        fill, indices, values = _arguments(node)
        row = indices[0] if len(indices) == 1 else None
    else:
        fill, dim, row, values = node.args[:4]  # type: ignore[assignment]
        if dim != 0 or (node.kwargs.get("alpha", 1) != 1):
            raise UnsupportedError("structure", f"{node} does not add rows")
    rows = shape_of(node)[0]
    found = read_row_map(builder, row, rows) if isinstance(row, torch.fx.Node) else None
    if found is None or not found[0].is_complete(rows):
        raise UnsupportedError("structure", f"the rows that {node} adds to do not come from offsets")
    if name != "aten.index_put.default" and found[0].shift == -1:
        raise UnsupportedError("structure", f"{node} refuses rows below zero")
    given = shape_of(values)
    if given[1:] != shape_of(node)[1:] or not given or difference(given[0], found[0].events) != 0:
        raise UnsupportedError("structure", f"{node} broadcasts its values")
    return Segments(values, fill, tuple(found[1]), found[0], rows)
