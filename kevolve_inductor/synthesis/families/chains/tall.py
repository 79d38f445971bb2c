"""Regrouped products of more rows than a program takes as a whole: ``(X_R Xᵀ) Y`` for some rows ``X_R`` of a sample.

One loop over the columns of ``X`` sums up the square, whose pieces stay as operands; then a sweep over the columns of
``Y`` multiplies them. Pieces are no wider than the rows that are summed over need: 160 are 128 and 32.
"""

from __future__ import annotations

from ....graph.region import ITEM_SIZES
from ...expression.triton import TRITON_TYPES
from ...family import Schedule
from .plan import TALLEST, ChainPlan, Regrouped
from .printing import Scope
from .sizes import LEAST_SIDE, Piece, padded, pieces_of
from .sweeps import Sweep
from .tiles import Extent
from .triton import WRITTEN_BLOCK, Writer

# The large matrix instructions take 64 rows; the depth of a product may be smaller.
_LEAST_ROWS, _LEAST_DEPTH = 64, 2 * LEAST_SIDE
# Rows of operands in shared memory: longer ones lie there in several parts.
_ROW_BYTES = 128


class TallWriter(Writer):
    """A program takes ``height`` rows of a sample. Where that is all of them, it takes them in pieces.

    Blocks of ``Y`` are then loaded once for all rows, but the whole square has to be held.
    """

    def __init__(self, plan: ChainPlan, schedule: Schedule) -> None:
        super().__init__(plan, schedule)
        self.row_kinds: list[Extent] = [self.row_kind]
        is_alone = len(plan.steps) == 1 and all(isinstance(part, Sweep) for part in self.order.parts)
        if self.shares == 1 and is_alone and isinstance(plan.rows, int):
            self.row_kinds = list(pieces_of(plan.rows, TALLEST, _LEAST_ROWS))

    @property
    def _is_cut(self) -> bool:
        return len(self.row_kinds) > 1

    def _depths(self, step: Regrouped) -> list[Piece]:
        """The rows that are summed over: where a program takes all of them, the pieces of its own, loaded once for both."""
        return pieces_of(step.depth, TALLEST, _LEAST_ROWS if self._is_cut else _LEAST_DEPTH)

    def _rows(self, rows: object) -> int:
        return self._size(self.row_kind)

    def _size(self, rows: Extent) -> int:
        return rows.size if isinstance(rows, Piece) else self.height

    def _part(self, step: Regrouped, rows: Extent, depth: Piece) -> str:
        """The name of a piece of the square."""
        return f"{self.tiles.value_name(step.name, rows)}_square_{depth.start}"

    # --- the square ---

    def _square(self, step: Regrouped, scope: Scope) -> None:
        depths = self._depths(step)
        for rows in self.row_kinds:
            size = self._size(rows)
            for depth in depths:
                scope.lines.append(f"{self._part(step, rows, depth)} = tl.zeros([{size}, {depth.size}], tl.float32)")
            scope.lines.append(f"{self._odd_of(step, rows)} = tl.zeros([{size}], tl.int32)")
        chunk = min(self.block, _ROW_BYTES // ITEM_SIZES[step.dtype], padded(step.middle))
        inner, head = self._looped(step.middle, chunk, scope)
        for rows in self.row_kinds:
            left = self.tiles.operand(step.left, (rows, "swept"), 1, step.dtype, inner)
            for depth in depths:
                part = self._part(step, rows, depth)
                right = self.tiles.operand(step.inner, ("swept", depth), 0, step.dtype, inner)
                inner.lines.append(f"{part} = tl.dot({left}, {right}, {part}{self.precision})")
        self._close(inner, head, ())
        for rows in self.row_kinds:
            for depth in depths:
                part = self._part(step, rows, depth)
                scope.lines.append(f"{part} = {part}.to({TRITON_TYPES[step.dtype]})")
        self._count_square(step, chunk * inner.times)

    def _count_square(self, step: Regrouped, middle: int) -> None:
        sizes, item_bytes = [self._size(rows) for rows in self.row_kinds], ITEM_SIZES[step.dtype]
        depths = [depth.size for depth in self._depths(step)]
        self.tally.flops += 2 * sum(sizes) * sum(depths) * middle
        self.tally.least_rows = min(self.tally.least_rows, *sizes)
        self.tally.computes([size * depth for size in sizes for depth in depths])
        self.tally.holds(sum(sizes) * sum(depths), item_bytes)
        if self._is_cut:
            # A piece of fewer rows lies in other threads than its square does: both go through shared memory, and so
            # do the results.
            moved = min(sizes) * sum(depths) if min(sizes) < max(sizes) else 0
            self.tally.kept_bytes = item_bytes * (moved + max(sizes) * min(self.block, padded(step.columns)))

    # --- what it is multiplied with ---

    def _sweep(self, sweep: Sweep, scope: Scope) -> None:
        if not self._is_cut:
            super()._sweep(sweep, scope)
            return
        inner, head = self._looped(sweep.extent, min(self.block, padded(sweep.extent)), scope)
        for rows in self.row_kinds:
            self.row_kind = rows
            inner.done -= self.plan.by_name.keys()
            for store in sweep.stores:
                self._wide_values((store.tile,), inner)
                self._store(store, inner, "swept")
        self._close(inner, head, ())

    def _regrouped(self, step: Regrouped, scope: Scope) -> None:
        columns, depths = self._columns(step), self._depths(step)
        rights = [self.tiles.operand(step.right, (depth, columns), 0, step.dtype, scope) for depth in depths]
        if scope.as_written:
            self._as_written(step, rights, scope)
            return
        name, total = self.tiles.value_name(step.name, self.row_kind), ""
        for depth, right in zip(depths, rights, strict=True):
            part = self._part(step, self.row_kind, depth)
            scope.lines.append(f"{name} = tl.dot({part}, {right}{total}{self.precision})")
            self.tally.flops += 2 * self._elements(step, scope) * depth.size * scope.times
            total = f", {name}"
        odd = self._odd_of(step, self.row_kind)
        scope.lines.append(f"{odd} += tl.max(({name} - {name} != 0).to(tl.int32), 1)")

    def _as_written(self, step: Regrouped, rights: list[str], scope: Scope) -> None:
        """``right`` has a block of columns: ``inner @ right`` for some rows at a time, and what those add to the result."""
        name, columns = self.tiles.value_name(step.name, self.row_kind), self._columns(step)
        size = self.tiles.size(columns, step.columns, scope)
        scope.lines.append(f"{name} = tl.zeros([{self._size(self.row_kind)}, {size}], tl.float32)")
        inner, head = self._looped(step.middle, min(WRITTEN_BLOCK, padded(step.middle)), scope)
        total = ""
        for depth, right in zip(self._depths(step), rights, strict=True):
            first = self.tiles.operand(step.inner, ("swept", depth), 1, step.dtype, inner)
            inner.lines.append(f"{name}_part = tl.dot({first}, {right}{total}{self.precision})")
            total = f", {name}_part"
        part = self._finite(f"{name}_part", step, inner)
        left = self.tiles.operand(step.left, (self.row_kind, "swept"), 1, step.dtype, inner)
        inner.lines.append(f"{name} = tl.dot({left}, {part}, {name}{self.precision})")
        inner.close(head)

    # --- results that are not finite ---

    def _odd_of(self, step: Regrouped, rows: Extent) -> str:
        return f"{self.tiles.value_name(step.name, rows)}_odd"

    def _odd(self, step: Regrouped) -> str:
        return " + ".join(f"tl.sum({self._odd_of(step, rows)}, 0)" for rows in self.row_kinds)
