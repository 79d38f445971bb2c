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
from .ahead import ROWS, direct_reads, load_ahead
from .cost import Tally
from .gelu import ONE_PLUS_ERF
from .plan import COLUMN, ROW, SAMPLE, ChainPlan, Dot, Reduce, Regrouped, Store, Tile
from .printing import Scope
from .sizes import Piece, padded

# What an operator costs, in additions.
_COSTS = {"exp": 6, "sigmoid": 12, "tanh": 14, "erf": 20, "truediv": 8, "log": 8, "sqrt": 8, "rsqrt": 6, "pow": 30,
          ONE_PLUS_ERF: 14}  # fmt: skip

# Elements of a value that is held for all units.
_MOST_HELD = 4096


# How an axis of a tile is taken: the program's share of the rows, everything, the block of the sweep at hand, or a piece.
Extent = Literal["rows", "whole", "swept"] | Piece
Extents = tuple[Extent, Extent]


@dataclass(frozen=True)
class Placed:
    """A tile in a kernel: its expression over coordinates, their names, and how many places each axis has."""

    value: Expr
    names: tuple[str, str]
    shape: tuple[int, int]


class Tiles:
    """Places tiles of a plan. A unit's rows are ``height`` from ``start``.

    ``fixed`` is the scope before all units, and ``moving`` names what is another one for each unit. With ``ahead``, what
    Triton would not load ahead is loaded one turn early.
    """

    def __init__(
        self, plan: ChainPlan, height: int, wide: bool, masks: dict[str, str], tally: Tally, ahead: bool
    ) -> None:
        self.plan, self.height, self.masks, self.tally, self.ahead = plan, height, masks, tally, ahead
        self.wide = ".to(tl.int64)" if wide else ""
        self.fixed: Scope | None = None
        self.moving = {SAMPLE, *ROWS}
        self.values = set(plan.by_name)

    # --- coordinates ---

    def size(self, kind: Extent, extent: Dim, scope: Scope) -> int:
        """Places of a tile along an axis."""
        if isinstance(kind, Piece):
            return kind.size
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
        for kind, cut in zip(kinds, (Regrouped, Dot), strict=True):
            if isinstance(kind, Piece):
                held = [name for name in tile.names if isinstance(self.plan.by_name.get(name), cut)]
                mapping |= {name: ex.var(self.value_name(name, kind), None, "float32") for name in held}
        shape = (self.size(kinds[0], tile.rows, scope), self.size(kinds[1], tile.columns, scope))
        return Placed(replace_variables(tile.value, mapping), (first, second), shape)

    def value_name(self, name: str, kind: Extent) -> str:
        """The variable that holds a step's result, or a piece of its columns (its rows, where it is regrouped)."""
        if not isinstance(kind, Piece):
            return name
        self.values.add(f"{name}_{kind.start}")
        return f"{name}_{kind.start}"

    def coordinate(self, kind: Extent, extent: Dim, position: int, scope: Scope) -> str:
        """The name of the coordinates along axis ``position`` of a tile, declared where they are first needed."""
        lead, place = ("p", "[:, None]") if position == 0 else ("q", "[None, :]")
        size = self.size(kind, extent, scope)
        if kind == "swept":
            assert scope.sweep is not None
            start, extent, _ = scope.sweep
            name, text = f"{lead}_{start}", f"{start} + tl.arange(0, {size})"
        elif isinstance(kind, Piece):
            name, text = f"{lead}_{extent}_{kind.start}", f"{kind.start} + tl.arange(0, {size})"
        elif kind == "rows":
            name, text = f"{lead}_rows", f"start + tl.arange(0, {size})"
        else:
            name, text = f"{lead}_{extent}", f"tl.arange(0, {size})"
        if not scope.declares(name):
            homes = {"swept": scope, "rows": scope.unit}
            home = scope.top if isinstance(kind, Piece) else homes.get(kind, scope.top)
            home.declared.add(name)
            home.lines.append(f"{name} = ({text}){self.wide}{place}")
        if isinstance(kind, Piece):
            is_masked = isinstance(extent, int) and kind.start + size > extent
        else:
            is_masked = not isinstance(extent, int) or extent % size != 0
        if is_masked:
            self.masks[name] = f"({name} < {extent})"
        return name

    # --- values ---

    def full(self, tile: Tile, kinds: Extents, scope: Scope) -> tuple[str, Placed]:
        """A tile in float32 that has both of its axes."""
        placed = self.placed(tile, kinds, scope)
        self._count(placed, scope, is_operand=False)
        self._load_early(placed, scope, is_operand=False)
        return self._widened(scope.printer.value(placed.value), tile, placed), placed

    def stored(self, store: Store, kinds: Extents, scope: Scope) -> tuple[str, str, Placed]:
        """A tile that is written, as wide as it comes, and where."""
        placed = self.placed(store.tile, kinds, scope)
        self._count(placed, scope, is_operand=False)
        self._load_early(placed, scope, is_operand=False)
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
        self._load_early(placed, scope, is_operand=True)
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

    def reads(self, placed: Placed) -> list[Expr]:
        """What a tile loads from places that need no loads themselves."""
        return list(direct_reads(placed.value))

    def _is_held(self, read: Expr, placed: Placed) -> bool:
        """Is it the same for all units, and no row or column, of which each thread would keep many values?"""
        return self._is_fixed(read) and math.prod(placed.shape) == self.share(read, placed) <= _MOST_HELD

    def _load_early(self, placed: Placed, scope: Scope, is_operand: bool) -> None:
        """Operands that are the same for all units are loaded before the first one, others a turn before they are needed.

        What is only added or multiplied stays where it is unless it is small: registers are scarcer than the bandwidth
        of caches.
        """
        if is_operand and self.fixed is not None and self._is_fixed(placed.value):
            self.fixed.printer.value(placed.value)
            scope.printer.adopt(placed.value, self.fixed.printer)
        for read in self.reads(placed):
            if scope.printer.has(read):
                continue
            if self.fixed is not None and not is_operand and self._is_held(read, placed):
                self.fixed.printer.value(read)
                scope.printer.adopt(read, self.fixed.printer)
                continue
            loop = scope.loop_of(ex.variables(read))
            if not self.ahead or loop is None or not scope.times or (not loop.is_unit and loop.times == 1):
                continue
            # Triton loads whole operands of a sweep's products ahead by itself, through shared memory.
            if loop.is_unit or not is_operand or self.share(read, placed) < math.prod(placed.shape):
                load_ahead(read, loop, scope, self.masks, self.height)

    # --- what it costs ---

    def _is_fixed(self, value: Expr) -> bool:
        """Is it the same for all units of a program?"""
        names = ex.variables(value)
        own = self.moving | self.values
        return not names & own and not any(name.startswith(("p_c", "q_c")) for name in names)

    def share(self, read: Expr, placed: Placed) -> int:
        """The elements that a read of a tile loads."""
        names = ex.variables(read)
        return math.prod(n for name, n in zip(placed.names, placed.shape, strict=True) if name in names)

    def count_operand(self, placed: Placed, scope: Scope) -> None:
        """Counts an operand that is written elsewhere."""
        self._count(placed, scope, is_operand=True)

    def _count(self, placed: Placed, scope: Scope, is_operand: bool) -> None:
        self._count_scalars(placed, scope)
        whole = placed.shape[0] * placed.shape[1]
        for read in ex.walk(placed.value):
            if read.op != "read":
                continue
            fixed, elements = self._is_fixed(read), self.share(read, placed)
            size = elements * ITEM_SIZES[read.value[1]]
            if scope.has_loaded(read):
                # What went to a product through shared memory is also kept in registers.
                self.tally.held += 0 if is_operand or fixed or scope.sweep is not None else size / 4
                continue
            scope.loaded.add(read)
            if fixed:
                if is_operand or not self._is_held(read, placed):
                    self.tally.fixed_bytes += size * min(scope.times, 1)
                else:
                    self.tally.fixed_values += elements * min(scope.times, 1)
            else:
                self.tally.own_bytes += size * scope.times
                self._count_own(read, size, scope, is_operand and elements == whole)
            if elements < whole or not scope.times:
                continue
            if not is_operand:
                scope.results.append(elements)
            elif not fixed:
                scope.operands[placed.value] = whole * ITEM_SIZES[self.plan.dtype]

    def _count_scalars(self, placed: Placed, scope: Scope) -> None:
        whole = placed.shape[0] * placed.shape[1]
        for part in ex.walk(placed.value):
            if part.op in ("var", "const", "size") or part.dtype == "int64" or scope.printer.has(part):
                continue
            is_whole = bool(ex.variables(part) & self.values)
            elements = whole if is_whole else self.share(part, placed)
            self.tally.scalar_ops += elements * _COSTS.get(part.op, 1) * scope.times

    def _count_own(self, read: Expr, size: int, scope: Scope, is_whole_operand: bool) -> None:
        if scope.sweep is None:
            self.tally.early_bytes += size
            if not ex.variables(read) & {*ROWS}:
                self.tally.sample_bytes += size
        elif not is_whole_operand:
            scope.late_bytes += size
