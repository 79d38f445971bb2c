"""Where a Triton row program's values are: which rows and columns its programs have, and the text at hand for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ....graph.dims import Dim, product
from ...expression import expression as ex
from ...expression.expression import Expr
from ..triton_tiles import INT32, cdiv, needs_64_bits
from .address import slope
from .program import COLUMNS, RowProgram
from .spaces import column_loads, columns_are_near
from .triton_shared import SharedRows
from .triton_space import Run, Space, SpacePrinter, Tile


@dataclass(frozen=True)
class Programs:
    """``count`` persistent programs; 0: as many programs as tiles.

    They read ``stages - 1`` tiles, or blocks of one, ahead through shared memory; with 0 stages one tile into registers,
    where numbers of a row go in any case.
    """

    count: int
    stages: int


class TritonPlaces:
    """The lines of a kernel and its spaces: per row (``None``), the columns, and each selection's axis.

    ``pieces`` are the spaces of the columns; that which is printed stands in ``spaces``.
    """

    def __init__(self, program: RowProgram, tile: Tile, programs: Programs) -> None:
        self.program, self.tile, self.persistent = program, tile, programs
        self.total: Dim = product(tuple(extent for _, extent in program.rows))
        self.out: list[str] = []
        self.indent = 0
        self.count = 0
        self.spaces: dict[str | None, Space] = {}
        self.printers: dict[str | None, SpacePrinter] = {}
        self.pieces: list[tuple[Space, SpacePrinter]] = []
        self.hoisted: dict[Expr, Expr] = {}
        self.shared = SharedRows(program, self.tiles, tile.parts, tile.rows) if tile.parts > 1 else None
        # The row of programs that share one is a number, from whose layout in threads nothing can follow.
        self.one_row = self.shared is not None and tile.rows == 1

    @property
    def which_program(self) -> str:
        """Which program this is, in as many bits as addresses need."""
        return "tl.program_id(0).to(tl.int64)" if self._is_wide else "tl.program_id(0)"

    @property
    def _is_wide(self) -> bool:
        return needs_64_bits((*self.program.inputs, *self.program.outputs))

    @property
    def _wide_columns(self) -> str:
        """Columns lie mostly next to each other, and 32 bits count them faster; not so where a step is a whole row."""
        program = self.program
        offsets = [load.args[0] for load in column_loads(program)]
        steps = [slope(offset, COLUMNS) for offset in (*offsets, *(one.offset for one in program.stores))]
        last = -(-program.columns // self.tile.columns) * self.tile.columns
        far = any(not isinstance(step, int) or abs(step) * last >= INT32 for step in steps)
        return ".to(tl.int64)" if far and self._is_wide else ""

    @property
    def _is_ragged(self) -> bool:
        """Whether the last piece, or block, of a row ends beyond it."""
        return (
            self.program.columns
            % (self.tile.span if self.tile.parts > 1 and not self.tile.looped else self.tile.columns)
            != 0
        )

    @property
    def blocks(self) -> int:
        """How many programs a row has."""
        return -(-self.program.columns // self.tile.columns) if self.tile.spread else self.tile.parts

    @cached_property
    def run_of_rows(self) -> int:
        """Rows that lie next to each other in memory and that tiles do not reach beyond; 0 where tiles are of any rows.

        Neighbours are then known to be neighbours, also where the run's length is no multiple of anything.
        """
        if len(self.program.rows) < 2 or self.persistent.count or columns_are_near(self.program):
            return 0
        run = self.program.rows[-1][1]
        return run if isinstance(run, int) and run >= self.tile.rows // 2 and run % self.tile.rows else 0

    @property
    def tiles(self) -> Dim:
        if self.run_of_rows:
            outer = product(tuple(extent for _, extent in self.program.rows[:-1]))
            return product((outer, cdiv(self.run_of_rows, self.tile.rows)))
        return cdiv(self.total, self.tile.rows)

    @property
    def programs(self) -> Dim:
        """How many are started; none more than there are tiles, where their number is known."""
        count = self.persistent.count
        if not count:
            return product((self.tiles, self.blocks)) if self.blocks > 1 else self.tiles
        return min(count, max(1, self.tiles)) if isinstance(self.tiles, int) else count

    @property
    def is_backwards(self) -> bool:
        """Whether tiles are taken from the last to the first. What sums over rows is a gradient: what it reads was written
        by a kernel that ended with the last rows, some of which are in the cache still."""
        return bool(self.program.column_sums)

    def tile_at(self, turn: str) -> str:
        """The tile of a persistent program's turn."""
        return f"({self.tile_count} - 1 - {turn})" if self.is_backwards else turn

    @property
    def tile_count(self) -> str:
        return str(self.tiles) if isinstance(self.tiles, int) else f"tl.cdiv({self.total}, {self.tile.rows})"

    # --- text ---

    def add(self, line: str) -> None:
        self.out.append("    " * self.indent + line)

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def value(self, axis: str | None, expr: Expr) -> str:
        """``expr`` in the space of ``axis``, its statements added."""
        printer = self.printers[axis]
        text = printer.value(ex.substitute(expr, self.hoisted.get) if axis == COLUMNS else expr)
        for line in printer.lines:
            self.add(line)
        printer.lines.clear()
        return text

    def whole(self, axis: str | None, expr: Expr) -> str:
        """The same as a tensor of the space's full shape."""
        return self.spaces[axis].spread(self.value(axis, expr), expr)

    def define_scalar(self, result: Expr, text: str) -> None:
        """A per-row tensor under the name of a scalar result, known in every space."""
        name = str(result.value[0])
        self.add(f"{name} = {text}")
        for space in (*self.spaces.values(), *(space for space, _ in self.pieces)):
            space.name(name, name + space.row_suffix)

    # --- spaces ---

    # --- rows and columns ---

    def _rows(self) -> None:
        start = self.tile_at("turn") if self.persistent.count else self.which_program
        if self.shared:
            start = f"line{'.to(tl.int64)' if self._is_wide else ''}"
        elif self.tile.spread:
            start = f"({start} // {self.blocks})"
        names = self._run_names(start) if self.run_of_rows else self.row_names(start)
        exact = not self.run_of_rows and isinstance(self.total, int) and self.total % self.tile.rows == 0
        if self.run_of_rows:
            self.add(f"live = {self.program.rows[-1][0]} < {self.run_of_rows}")
        elif not exact:
            self.add(f"live = row < {self.total}")
        shape = "" if self.one_row else f"[{self.tile.rows}]"
        self.spaces[None] = Space(self.program, None, shape, "", "", "" if exact else "live", "", names)
        self.printers[None] = self.spaces[None].printer("t")

    def row_names(self, start: str, prefix: str = "") -> dict[str, str]:
        """The row variables of the tile ``start``, by name."""
        rows = self.tile.rows
        self.add(f"{prefix}row = " + (start if self.one_row else f"{start} * {rows} + tl.arange(0, {rows})"))
        rest = f"{prefix}row"
        names = {}
        for name, extent in reversed(self.program.rows):
            first = name == self.program.rows[0][0]
            self.add(f"{prefix}{name} = {rest}" if first else f"{prefix}{name} = {rest} % ({extent})")
            rest = f"({rest} // ({extent}))"
            names[name] = f"{prefix}{name}"
        return names

    def _run_names(self, start: str) -> dict[str, str]:
        """The row variables of the tile ``start`` where tiles end with a run of rows."""
        rows, blocks = self.tile.rows, cdiv(self.run_of_rows, self.tile.rows)
        *outer, (inner, _) = self.program.rows
        self.add(f"{inner} = ({start} % {blocks}) * {rows} + tl.arange(0, {rows})")
        rest = f"({start} // {blocks})"
        for name, extent in reversed(outer):
            own = rest if name == outer[0][0] else f"{rest} % ({extent})"
            self.add(f"{name} = {own} + tl.zeros([{rows}], tl.int32)")
            rest = f"({rest} // ({extent}))"
        return {name: name for name, _ in self.program.rows}

    def position(self, piece: int) -> str:
        return f"{COLUMNS}{piece}" if piece else COLUMNS

    def mask(self, piece: int) -> str:
        # Of a shared row the last part may be of any length.
        last = piece == self.tile.pieces - 1 or self.shared is not None
        return f"{self.position(piece)} < {self.program.columns}" if self._is_ragged and last else ""

    @property
    def _deep(self) -> str:
        return f"tl.arange(0, {self.tile.depth})[None, None, :, None]"

    def _positions(self) -> None:
        """The columns of a tile, or of its block of them."""
        tile = self.tile
        lane = f"tl.arange(0, {tile.lanes}){self._wide_columns}[None, :, None, None]"
        near = f"tl.arange(0, {tile.vector})[None, None, None, :]"
        name = "block" if tile.looped else COLUMNS
        parts = [f"{lane} * {tile.vector}" if tile.vector > 1 else lane]
        parts += [f"{self._deep} * {tile.run}"] if tile.depth > 1 else []
        parts += [near] if tile.vector > 1 else []
        parts += ["begin"] if self.shared and not tile.looped else []
        self.add(f"{name} = {' + '.join(parts)}")
        for k in range(1, tile.pieces):
            self.add(f"{self.position(k)} = {COLUMNS} + {k * tile.columns}")

    def _columns(self) -> None:
        """The space of every piece."""
        for k in range(self.tile.pieces):
            space = self._space(COLUMNS, self.tile.shape, "[:, None, None, None]", self.position(k), self.mask(k))
            if not space.axis_mask:
                first = f"part * {self.tile.span // self.tile.run} + " if self.shared else ""
                self._mark_run(space, first + (f"{k * self.tile.depth} + " if k else ""))
            self.pieces.append((space, self.printers[COLUMNS]))

    def _mark_run(self, space: Space, start: str) -> None:
        """Masks have the shape of the tile, which reads along the depth alone have not."""
        space.run = Run(f"({start}{self._deep})", self.tile.run)

    def _each_piece(self) -> Iterator[Space]:
        """Every piece in turn as the columns that are printed."""
        for space, printer in self.pieces:
            self.spaces[COLUMNS], self.printers[COLUMNS] = space, printer
            yield space

    def axis_space(self, axis: str, width: int) -> None:
        """The space of what a selection selected, ``width`` positions wide."""
        self.add(f"{axis} = tl.arange(0, {width})[None, :]")
        extent = self.program.axes[axis]
        mask = f"{axis} < {extent}" if width != extent else ""
        self._space(axis, f"[{self.tile.rows}, {width}]", "[:, None]", axis, mask)

    def _space(self, axis: str, shape: str, suffix: str, position: str, mask: str) -> Space:
        row, suffix = self.spaces[None], "" if self.one_row else suffix
        row_mask = row.row_mask + suffix if row.row_mask else ""
        names = {name: text + suffix for name, text in row.names.items()}
        space = Space(self.program, axis, shape, suffix, position, row_mask, mask, {**names, axis: position})
        self.spaces[axis], self.printers[axis] = space, space.printer(f"{position}_")
        return space

    def masked(self, axis: str, expr: Expr, outside: str) -> str:
        """``expr`` over an axis with ``outside`` in the positions beyond it."""
        space = self.spaces[axis]
        whole = self.whole(axis, expr)
        return f"tl.where({space.axis_mask}, {whole}, {outside})" if space.axis_mask else whole

    def flat(self, axis: str, text: str) -> str:
        return f"tl.reshape({text}, [{self.tile.rows}, {self.tile.columns}])" if axis == COLUMNS else text

    def per_lane(self, text: str) -> str:
        """A tile with each thread's columns along its last axis."""
        return f"tl.reshape({text}, [{self.tile.rows}, {self.tile.lanes}, {self.tile.per_thread}])"
