"""Tiles as Triton expressions: their coordinates and masks, and what loading them costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ....graph.dims import Dim
from ....graph.region import ITEM_SIZES
from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from .cost import Tally
from .plan import COLUMN, ROW, SAMPLE, ChainPlan, Reduce, Store, Tile
from .printing import Scope
from .sizes import padded

# How an axis of a tile is taken: the program's share of the rows, everything, or the block of the sweep at hand.
Extent = Literal["rows", "whole", "swept"]
Extents = tuple[Extent, Extent]


@dataclass(frozen=True)
class Placed:
    """A tile in a kernel: its expression over coordinates, their names, and how many places each axis has."""

    value: Expr
    names: tuple[str, str]
    shape: tuple[int, int]


class Tiles:
    """Places tiles of a plan. A unit's rows are ``height`` from ``start``, of which a program takes ``loop`` in a row;
    ``fixed`` is the scope before all units.
    """

    def __init__(
        self, plan: ChainPlan, height: int, loop: int, wide: bool, masks: dict[str, str], tally: Tally
    ) -> None:
        self.plan, self.height, self.loop, self.masks, self.tally = plan, height, loop, masks, tally
        self.wide = ".to(tl.int64)" if wide else ""
        self.fixed: Scope | None = None

    # --- coordinates ---

    def size(self, kind: Extent, extent: Dim, scope: Scope) -> int:
        """Places of a tile along an axis."""
        if kind == "rows":
            return self.height
        if kind == "swept":
            assert scope.sweep is not None
            return scope.sweep[2]
        return 1 if extent == 1 else padded(extent)

    def placed(self, tile: Tile, kinds: Extents, scope: Scope) -> Placed:
        extents = (tile.rows, tile.columns)
        first, second = (self.coordinate(kinds[k], extents[k], k, scope) for k in (0, 1))
        mapping = {ROW: ex.var(first, tile.rows), COLUMN: ex.var(second, tile.columns)}
        shape = (self.size(kinds[0], tile.rows, scope), self.size(kinds[1], tile.columns, scope))
        return Placed(replace_variables(tile.value, mapping), (first, second), shape)

    def coordinate(self, kind: Extent, extent: Dim, position: int, scope: Scope) -> str:
        """The name of the coordinates along axis ``position`` of a tile, declared where they are first needed."""
        lead, place = ("p", "[:, None]") if position == 0 else ("q", "[None, :]")
        size = self.size(kind, extent, scope)
        if kind == "swept":
            assert scope.sweep is not None
            start, extent, _ = scope.sweep
            name, text = f"{lead}_{start}", f"{start} + tl.arange(0, {size})"
        elif kind == "rows":
            name, text = f"{lead}_rows", f"start + tl.arange(0, {size})"
        else:
            name, text = f"{lead}_{extent}", f"tl.arange(0, {size})"
        if not scope.declares(name):
            home = {"swept": scope, "rows": scope.unit, "whole": scope.top}[kind]
            home.declared.add(name)
            home.lines.append(f"{name} = ({text}){self.wide}{place}")
        # Where rows are not shared out by samples, the last program's last units may lie behind the end.
        reach = size * self.loop if kind == "rows" and self.plan.batch is None else size
        if not isinstance(extent, int) or extent % reach:
            self.masks[name] = f"({name} < {extent})"
        return name

    # --- values ---

    def full(self, tile: Tile, kinds: Extents, scope: Scope) -> tuple[str, Placed]:
        """A tile in float32 that has both of its axes."""
        placed = self.placed(tile, kinds, scope)
        self._count(placed, scope, is_operand=False)
        return self._widened(scope.printer.value(placed.value), tile, placed), placed

    def stored(self, store: Store, kinds: Extents, scope: Scope) -> tuple[str, str, Placed]:
        """A tile that is written, as wide as it comes, and where."""
        placed = self.placed(store.tile, kinds, scope)
        self._count(placed, scope, is_operand=False)
        mapping = {ROW: ex.var(placed.names[0], store.tile.rows), COLUMN: ex.var(placed.names[1], store.tile.columns)}
        offset = replace_variables(store.offset, mapping, is_offset=True)
        value, at = scope.printer.value(placed.value), scope.printer.value(offset)
        # An offset that does not depend on both axes is given the rank of a tile.
        at = at if ex.variables(offset) >= set(placed.names) else f"{at} + tl.zeros([1, 1], tl.int32)"
        return value, at, placed

    def operand(self, tile: Tile, kinds: Extents, depth: int, dtype: str, scope: Scope) -> str:
        """An operand of a product, zero beyond the end of axis ``depth`` of the product's view, which is summed over."""
        if tile.turned:
            kinds, depth = (kinds[1], kinds[0]), 1 - depth
        placed = self.placed(tile, kinds, scope)
        self._count(placed, scope, is_operand=True)
        if self.fixed is not None and self._is_fixed(placed):
            # Computed once, before the first unit.
            placed = self.placed(tile, kinds, self.fixed)
            self.fixed.printer.value(placed.value)
            scope.printer.adopt(placed.value, self.fixed.printer)
        text = self._widened(scope.printer.operand(placed.value, dtype), tile, placed)
        mask = self.masks.get(placed.names[depth])
        loaded_as_zero = placed.value.op == "read" and placed.names[depth] in ex.variables(placed.value)
        if mask is not None and not loaded_as_zero:
            text = f"tl.where({mask}, {text}, 0.0).to({TRITON_TYPES[dtype]})"
        return f"tl.trans({text})" if tile.turned else text

    def _widened(self, text: str, tile: Tile, placed: Placed) -> str:
        covered = {ROW, COLUMN} & tile.names
        for step in self.plan.steps:
            if step.name in tile.names:
                gone = step.axes if isinstance(step, Reduce) else ()
                covered |= {name for axis, name in enumerate((ROW, COLUMN)) if axis not in gone}
        return text if len(covered) == 2 else f"tl.broadcast_to({text}, {list(placed.shape)})"

    # --- what it costs ---

    def _is_fixed(self, placed: Placed) -> bool:
        """Is it the same for all units of a program?"""
        names = ex.variables(placed.value)
        own = {SAMPLE, "p_rows", "q_rows", *self.plan.by_name}
        return not names & own and not any(name.startswith(("p_c", "q_c")) for name in names)

    def _count(self, placed: Placed, scope: Scope, is_operand: bool) -> None:
        fixed = self._is_fixed(placed)
        whole = placed.shape[0] * placed.shape[1]
        for read in ex.walk(placed.value):
            if read.op != "read" or scope.has_loaded(read):
                continue
            scope.loaded.add(read)
            names = ex.variables(read)
            elements = math.prod(n for name, n in zip(placed.names, placed.shape, strict=True) if name in names)
            if fixed:
                self.tally.fixed_bytes += elements * ITEM_SIZES[read.value[1]] * min(scope.times, 1)
            else:
                self.tally.own_bytes += elements * ITEM_SIZES[read.value[1]] * scope.times
            if elements < whole or not scope.times:
                continue
            if not is_operand:
                scope.results.append(elements)
            elif not fixed:
                scope.operands[placed.value] = whole * ITEM_SIZES[self.plan.dtype]
