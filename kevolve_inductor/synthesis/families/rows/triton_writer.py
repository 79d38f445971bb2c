"""The text of one Triton kernel: a program's steps over tiles of rows, in the shapes of ``triton_space``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....exc import EmissionError
from ....graph.dims import Dim, product
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from ..triton_tiles import INT32, cdiv, needs_64_bits
from .address import slope
from .program import COLUMNS, ColumnSum, Element, Pass, Reduce, RowProgram, Select, Step, Store, online_pairs, passes
from .spaces import column_loads
from .triton_folds import Fold, OnlineFold, ReduceFold, identity, reduced
from .triton_space import Run, Space, SpacePrinter, Tile
from .triton_steps import Selector


@dataclass(frozen=True)
class Programs:
    """``count`` persistent programs that read ``stages - 1`` tiles ahead; 0: as many programs as tiles."""

    count: int
    stages: int


class TritonWriter:
    """Prints one kernel. ``spaces`` hold the shapes: per row (``None``), the columns, and each selection's axis."""

    def __init__(
        self, program: RowProgram, tile: Tile, selections: tuple[str, str], online: bool, programs: Programs
    ) -> None:
        if program.column_sums and (tile.looped or not programs.count):
            raise EmissionError("sums over all rows need whole rows and persistent programs")
        self.program, self.tile, self.persistent = program, tile, programs
        self.pairs = online_pairs(program) if online else ()
        self.total: Dim = product(tuple(extent for _, extent in program.rows))
        self.out: list[str] = []
        self.indent = 0
        self.count = 0
        self.spaces: dict[str | None, Space] = {}
        self.printers: dict[str | None, SpacePrinter] = {}
        self.totals: dict[str, str] = {}
        self.hoisted: dict[Expr, Expr] = {}
        self.selector = Selector(self, *selections)

    @property
    def _program(self) -> str:
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
    def _column_mask(self) -> str:
        return f"{COLUMNS} < {self.program.columns}" if self.program.columns % self.tile.columns != 0 else ""

    @property
    def tiles(self) -> Dim:
        return cdiv(self.total, self.tile.rows)

    @property
    def programs(self) -> Dim:
        """How many are started; none more than there are tiles, where their number is known."""
        count = self.persistent.count
        if not count:
            return self.tiles
        return min(count, max(1, self.tiles)) if isinstance(self.tiles, int) else count

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
        for space in self.spaces.values():
            space.name(name, name + space.row_suffix)

    # --- spaces ---

    def lines(self) -> list[str]:
        self._positions()
        held = self._held() if self.persistent.count and not self.tile.looped else {}
        if self.persistent.count:
            self._persistent_loop()
        self._rows()
        mask = self._column_mask
        self._space(COLUMNS, self.tile.shape, "[:, None, None, None]", COLUMNS, mask)
        self.spaces[COLUMNS].held.update(held)
        if not mask:
            # Masks have the shape of the tile, which reads along the depth alone have not.
            start = f"c0 // {self.tile.run} + " if self.tile.looped else ""
            self.spaces[COLUMNS].run = Run(f"({start}{self._deep})", self.tile.run)
        steps = passes(self.program, self.pairs)
        for step in steps:
            if step.sweep:
                self._sweep(step)
            for after in step.after:
                self._step(after)
        self.indent = 0
        for position, one in enumerate(self.program.column_sums):
            place = f"tl.program_id(0) * {self.program.columns} + {COLUMNS}"
            mask = self.spaces[COLUMNS].axis_mask
            total = f"tl.sum({self.totals[one.result.value[0]]}, 0, keep_dims=True)"
            self.add(f"tl.store(part{position} + {place}, {total}{f', mask={mask}' if mask else ''})")
        return self.out

    def _held(self) -> dict[Expr, str]:
        """What all rows read (weights), read once before the loop over tiles; names by load."""
        space = Space(self.program, COLUMNS, self.tile.shape, "", COLUMNS, "", self._column_mask, {COLUMNS: COLUMNS})
        printer = space.printer("k")
        held = {}
        for load in column_loads(self.program):
            if not self.program.is_row_dependent(load) and self.program.axis_of(load) == COLUMNS:
                text = printer.raw(load)
                for line in printer.lines:
                    self.add(line)
                printer.lines.clear()
                held[load] = self.fresh("k")
                self.add(f"{held[load]} = {text}")
        return held

    def _persistent_loop(self) -> None:
        for one in self.program.column_sums:
            name = self.totals[one.result.value[0]] = self.fresh("a")
            self.add(f"{name} = tl.zeros({self.tile.shape}, {TRITON_TYPES[one.result.dtype]})")
        tiles = self.tiles if isinstance(self.tiles, int) else f"tl.cdiv({self.total}, {self.tile.rows})"
        self._loop("tile", f"{self._program}, {tiles}, tl.num_programs(0)")

    def _loop(self, name: str, bounds: str) -> None:
        """Reading ahead goes through shared memory, which a loop of one stage does without."""
        stages = self.persistent.stages
        self.add(
            f"for {name} in tl.range({bounds}, num_stages={stages}):"
            if stages > 1
            else f"for {name} in range({bounds}):"
        )
        self.indent += 1

    def _rows(self) -> None:
        rows = self.tile.rows
        start = "tile" if self.persistent.count else self._program
        self.add(f"row = {start} * {rows} + tl.arange(0, {rows})")
        exact = isinstance(self.total, int) and self.total % rows == 0
        if not exact:
            self.add(f"live = row < {self.total}")
        rest = "row"
        names = {}
        for name, extent in reversed(self.program.rows):
            first = name == self.program.rows[0][0]
            self.add(f"{name} = {rest}" if first else f"{name} = {rest} % ({extent})")
            rest = f"({rest} // ({extent}))"
            names[name] = name
        self.spaces[None] = Space(self.program, None, f"[{rows}]", "", "", "" if exact else "live", "", names)
        self.printers[None] = self.spaces[None].printer("t")

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
        self.add(f"{name} = {' + '.join(parts)}")

    def axis_space(self, axis: str, width: int) -> None:
        """The space of what a selection selected, ``width`` positions wide."""
        self.add(f"{axis} = tl.arange(0, {width})[None, :]")
        extent = self.program.axes[axis]
        mask = f"{axis} < {extent}" if width != extent else ""
        self._space(axis, f"[{self.tile.rows}, {width}]", "[:, None]", axis, mask)

    def _space(self, axis: str, shape: str, suffix: str, position: str, mask: str) -> None:
        row = self.spaces[None]
        row_mask = row.row_mask + suffix if row.row_mask else ""
        names = {name: text + suffix for name, text in row.names.items()}
        self.spaces[axis] = Space(
            self.program, axis, shape, suffix, position, row_mask, mask, {**names, axis: position}
        )
        self.printers[axis] = self.spaces[axis].printer(f"{axis}_")

    # --- sweeps ---

    def _hoist(self, part: Step) -> None:
        """Numbers of the row that a sweep uses are computed, and read, before it."""
        if (
            isinstance(part, Element)
            or self.program.selects
            or not (isinstance(part, ColumnSum) or part.axis == COLUMNS)
        ):
            return
        for value in self._numbers_of_row(part.value):
            if value not in self.hoisted:
                name = ex.var(self.fresh("h"), None, value.dtype)
                self.define_scalar(name, self.whole(None, value))
                self.hoisted[value] = name

    def _numbers_of_row(self, value: Expr) -> list[Expr]:
        """The largest parts that do not vary along the columns, names and addresses aside."""
        if value.op in ("var", "const", "size"):
            return []
        if self.program.axis_of(value) is None:
            return [value]
        if value.op == "load":
            return []
        return [number for argument in value.args for number in self._numbers_of_row(argument)]

    def _sweep(self, step: Pass) -> None:
        if not self.tile.looped:
            for part in step.sweep:
                self._step(part)
            return
        folds = [fold for fold in (self._fold(part, step.sweep) for part in step.sweep) if fold is not None]
        for fold in folds:
            for line in fold.before:
                self.add(line)
        for part in step.sweep:
            self._hoist(part)
        self._loop("c0", f"0, {self.program.columns}, {self.tile.columns}")
        self.add(f"{COLUMNS} = c0 + block")
        self.printers[COLUMNS] = self.spaces[COLUMNS].printer(f"{COLUMNS}_")
        for fold in folds:
            fold.inside()
        for part in step.sweep:
            if isinstance(part, Store):
                self._store(part)
        self.indent -= 1
        for fold in folds:
            fold.after()

    def _fold(self, part: Step, sweep: Sequence[Step]) -> Fold | None:
        if isinstance(part, Reduce):
            if any(part is first and second in sweep for first, second in self.pairs):
                return None
            partner = next((first for first, second in self.pairs if part is second), None)
            return OnlineFold(self, partner, part) if partner is not None else ReduceFold(self, part)
        return self.selector.fold(part) if isinstance(part, Select) else None

    # --- steps ---

    def _step(self, part: Step) -> None:
        self._hoist(part)
        if isinstance(part, ColumnSum):
            space = self.spaces[COLUMNS]
            value = self.whole(COLUMNS, part.value)
            name = self.totals[part.result.value[0]]
            self.add(
                f"{name} += tl.where({space.whole_mask}, {value}, 0)" if space.whole_mask else f"{name} += {value}"
            )
        elif isinstance(part, Store):
            self._store(part)
        elif isinstance(part, Reduce):
            self._reduce(part)
        elif isinstance(part, Select):
            self.selector.select(part)
        else:
            self._element(part)

    def _store(self, store: Store) -> None:
        space = self.spaces[store.axis]
        value = self.value(store.axis, store.value)
        offset = self.value(store.axis, store.offset)
        guard = f", mask={space.whole_mask}" if space.whole_mask else ""
        if not self.program.rows and store.axis is None:
            offset = f"{offset} + row"  # The one row is row 0; its address has to be a tensor as its value is.
        self.add(f"tl.store(out{store.output} + ({offset}), {value}{guard})")

    def _reduce(self, reduce: Reduce) -> None:
        values = self.masked(reduce.axis, reduce.value, identity(reduce))
        self.define_scalar(reduce.result, reduced(reduce, self.flat(reduce.axis, values)))

    def _element(self, element: Element) -> None:
        axis = self.program.axis_of(element.source)
        assert axis is not None
        source = self.value(axis, element.source)
        name = self.fresh("e")
        # A sum in which all but one are zero; of the bits, so that the sign of a zero survives.
        bits = {"float32": "tl.int32", "float64": "tl.int64"}.get(element.source.dtype)
        taken = f"{source}.to({bits}, bitcast=True)" if bits else f"{source}.to(tl.int64)"
        self.add(f"{name} = tl.sum(tl.where({axis} == {element.position}, {taken}, 0), 1)")
        kind = TRITON_TYPES[element.result.dtype]
        self.define_scalar(element.result, f"{name}.to({kind}, bitcast=True)" if bits else f"{name}.to({kind})")

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
