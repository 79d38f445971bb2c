"""Kernels without sweeps: what is wide is held in pieces, one after another in straight code.

A piece is never wider than its columns need, and what is loaded for one product is still there for what comes later.
"""

from __future__ import annotations

from ....exc import EmissionError
from ....graph.region import ITEM_SIZES
from .plan import SAMPLE, ChainPlan, Dot, Reduce, Store, Tile
from .printing import Scope
from .sizes import pieces_of
from .tiles import Extent
from .triton import Writer

# Operands of products in one unit, by which the text grows.
_MOST_PIECES = 16
# Rows of operands in shared memory: where some have fewer bytes they lie there in another layout, and code that has both
# in one place after another is assembled wrongly (``platforms.ptx``). What stays for all units has places of its own.
_ROW_BYTES, _LASTING_ROW_BYTES = 128, 64


def may_be_straight(plan: ChainPlan) -> bool:
    """Pieces of columns can be multiplied one by one where rows stay apart."""
    return plan.rowwise and all(isinstance(step, Dot | Reduce) for step in plan.steps)


class StraightWriter(Writer):
    """Computes every value where it is first needed."""

    @property
    def is_cut(self) -> bool:
        """Is anything wider than a piece?"""
        widths = [step.tile.columns if isinstance(step, Reduce) else max(step.depth, step.columns)
                  for step in self.plan.steps if isinstance(step, Dot | Reduce)]  # fmt: skip
        return any(len(self._extents(width)) > 1 for width in widths)

    def _parts(self, scope: Scope) -> None:
        if not self.is_cut:
            raise EmissionError("nothing is wider than a piece")
        for step in self.plan.steps:
            if (
                isinstance(step, Dot)
                and len(self._extents(step.depth)) * len(self._extents(step.columns)) > _MOST_PIECES
            ):
                raise EmissionError(f"{step.name} falls into too many pieces")
        for store in self.plan.stores:
            for columns in self._extents(store.tile.columns):
                self._need(store.tile, columns, scope)
                self._store(store, scope, columns)

    @property
    def sweeps(self) -> int:
        return 0

    def _load_early(self, scope: Scope) -> None:
        """Pieces are loaded where they are needed: together they take too much room."""

    def _extents(self, extent: object) -> list[Extent]:
        if not isinstance(extent, int):
            return ["whole"]
        lasting = self.loop > 1 and (self.plan.batch is None or SAMPLE not in self.tiles.moving)
        row_bytes = _LASTING_ROW_BYTES if lasting else _ROW_BYTES
        pieces = pieces_of(extent, self.block, row_bytes // ITEM_SIZES[self.plan.dtype])
        return list(pieces) if len(pieces) > 1 else ["whole"]

    def _need(self, tile: Tile, columns: Extent, scope: Scope) -> None:
        """Computes what ``tile`` reads of a piece of its columns."""
        for step in self.plan.steps:
            if step.name not in tile.names:
                continue
            if isinstance(step, Reduce):
                self._reduce(step, scope)
            elif isinstance(step, Dot):
                self._multiply(step, columns, scope)

    def _reduce(self, step: Reduce, scope: Scope) -> None:
        if step.name in scope.done:
            return
        for number, columns in enumerate(self._extents(step.tile.columns)):
            self._need(step.tile, columns, scope)
            part = self._reduced(step, columns, scope)
            scope.lines.append(f"{step.name} = {self._combined(step, part) if number else part}")
        scope.done.add(step.name)

    def _multiply(self, step: Dot, columns: Extent, scope: Scope) -> None:
        name = self.tiles.value_name(step.name, columns)
        if name in scope.done:
            return
        if step.onto:
            self._multiply_named(step.onto, columns, scope)
        depths = self._extents(step.depth)
        for depth in depths:
            self._need(step.left, depth, scope)
        # Everything is on its way before the first product waits for it.
        operands = [self._operands(step, depth, columns, scope) for depth in depths]
        self._count_step(step, depths, columns, scope)
        total = self.tiles.value_name(step.onto, columns) if step.onto else ""
        for left, right in operands:
            scope.lines.append(f"{name} = tl.dot({left}, {right}{total and f', {total}'}{self.precision})")
            total = name
        self._hold(step, columns, scope)
        scope.done.add(name)

    def _multiply_named(self, name: str, columns: Extent, scope: Scope) -> None:
        step = self.plan.by_name[name]
        assert isinstance(step, Dot)
        self._multiply(step, columns, scope)

    def _operands(self, step: Dot, depth: Extent, columns: Extent, scope: Scope) -> tuple[str, str]:
        elements = self.height * self.tiles.size(columns, step.columns, scope)
        self.tally.flops += 2 * elements * self.tiles.size(depth, step.depth, scope)
        self.tally.least_rows = min(self.tally.least_rows, self.height)
        left = self.tiles.operand(step.left, (self.row_kind, depth), 1, step.dtype, scope)
        return left, self.tiles.operand(step.right, (depth, columns), 0, step.dtype, scope)

    def _count_step(self, step: Dot, depths: list[Extent], columns: Extent, scope: Scope) -> None:
        depth = sum(self.tiles.size(one, step.depth, scope) for one in depths)
        sides = self.height + self.tiles.size(columns, step.columns, scope)
        self.tally.step_bytes = max(self.tally.step_bytes, depth * sides * ITEM_SIZES[step.dtype])

    def _hold(self, step: Dot, columns: Extent, scope: Scope) -> None:
        """What only products read is kept as an operand; what is stored piece by piece is not kept at all."""
        elements = self.height * self.tiles.size(columns, step.columns, scope)
        self.tally.computes([elements])
        readers = [other for other in (*self.plan.steps, *self.plan.stores) if step in self.plan.read_by(other)]
        if any(isinstance(reader, Reduce) for reader in readers) and len(readers) > 1:
            self.tally.holds(elements, 4)
        elif not all(isinstance(reader, Store) for reader in readers):
            self.tally.holds(elements, ITEM_SIZES[step.dtype])
