"""Row programs as Triton.

A program holds a few rows. Their columns are a tensor ``[rows, lanes, depth, vector]``: neighbouring columns in a
thread's vector, then across threads, then in a thread's further vectors. So each thread keeps many columns of one row,
and selections work mostly within threads. Rows that do not fit into a tile are walked over in blocks, once for every
sweep of the program.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....exc import EmissionError
from ....graph.dims import Dim, product
from ....graph.region import TensorSpec
from ....kernel import Kernel, Launch
from ...expression import TRITON_PRELUDE
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES, used_helpers
from ...family import Schedule
from ..common import arguments_of
from .program import COLUMNS, Element, Pass, Reduce, RowProgram, Select, Statement, Store, online_pairs, passes
from .simplify import simplified
from .spaces import columns_are_near, vector_of
from .triton_folds import Fold, OnlineFold, ReduceFold, identity, reduced
from .triton_prelude import ROW_HELPERS
from .triton_space import Space, SpacePrinter, Tile
from .triton_steps import Selector

_FUNCTION = "row_program"
_INT32 = 2**31
_WARP = 32
_MOST_WARPS = 16
_MOST_PER_THREAD = 128


def emit_triton(program: RowProgram, schedule: Schedule) -> Kernel:
    """Raises ``EmissionError`` where the schedule does not fit."""
    online = bool(schedule.get("online", False)) and schedule["algorithm"] == "loop"
    if schedule.get("simplify", True):
        program = simplified(program, online)
    tile, warps = tile_of(program, schedule)
    writer = TritonWriter(
        program, tile, str(schedule.get("key", "int64")), online, str(schedule.get("select", "network"))
    )
    names = [f"in{k}" for k in range(len(program.inputs))] + [f"out{k}" for k in range(len(program.outputs))]
    body = "\n".join(f"    {line}" for line in writer.lines())
    code = f"@triton.jit\ndef {_FUNCTION}({', '.join([*names, *program.symbols])}):\n{body}"
    source = f"{used_helpers(TRITON_PRELUDE + ROW_HELPERS, code)}\n\n{code}\n"
    arguments = arguments_of(program.inputs, program.outputs, program.symbols)
    launch = Launch(_FUNCTION, arguments, (writer.grid,), num_warps=warps, num_stages=1)
    return Kernel("triton", source, (launch,))


def tile_of(program: RowProgram, schedule: Schedule) -> tuple[Tile, int]:
    """The tile of a schedule and the warps that share it.

    Where columns are neighbours in memory a row is spread over ``lanes`` threads; up to a warp of them, so that a warp
    holds several rows, else one row per program. Where rows are neighbours, threads go along them first.
    """
    lanes, looped = int(schedule["lanes"]), schedule["algorithm"] == "loop"
    near = columns_are_near(program)
    vector = vector_of(program) if near else 1
    power = 1 << (program.columns - 1).bit_length()
    if lanes * vector > 2 * power:
        raise EmissionError(f"{lanes} threads for {program.columns} columns")
    whole = max(lanes * vector, power)
    depth = whole // (lanes * vector)
    if looped:
        depth = min(depth, int(schedule["depth"]))
    if depth * vector > _MOST_PER_THREAD:
        raise EmissionError(f"{depth * vector} columns of a row in one thread")
    rows = int(schedule["rows"])
    if near:
        rows = rows * max(1, _WARP // lanes) if program.rows else 1
        warps = max(1, lanes // _WARP)
    else:
        warps = max(1, rows * lanes // (4 * _WARP))
    if warps > _MOST_WARPS:
        raise EmissionError(f"{warps} warps in a program")
    return Tile(rows, lanes, depth, vector, looped), 1 << (warps - 1).bit_length()


class TritonWriter:
    """Prints one kernel. ``spaces`` hold the shapes: per row (``None``), the columns, and each selection's axis."""

    def __init__(self, program: RowProgram, tile: Tile, key: str, online: bool, select: str) -> None:
        self.program, self.tile = program, tile
        self.pairs = online_pairs(program) if online else ()
        self.total: Dim = product(tuple(extent for _, extent in program.rows))
        self.out: list[str] = []
        self.indent = 0
        self.count = 0
        self.spaces: dict[str | None, Space] = {}
        self.printers: dict[str | None, SpacePrinter] = {}
        self.selector = Selector(self, key, select)

    @property
    def grid(self) -> str:
        if isinstance(self.total, int):
            return str(-(-self.total // self.tile.rows))
        return f"cdiv({self.total}, {self.tile.rows})"

    # --- text ---

    def add(self, line: str) -> None:
        self.out.append("    " * self.indent + line)

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def value(self, axis: str | None, expr: Expr) -> str:
        """``expr`` in the space of ``axis``, its statements added."""
        printer = self.printers[axis]
        text = printer.value(expr)
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
        self._rows()
        self._columns()
        steps = passes(self.program, self.pairs)
        for step in steps:
            if step.sweep:
                self._sweep(step)
            for after in step.after:
                self._step(after)
        return self.out

    def _rows(self) -> None:
        rows, sizes = self.tile.rows, (*self.program.inputs, *self.program.outputs)
        narrow = all(isinstance(spec.numel, int) and _reach(spec) < _INT32 for spec in sizes)
        start = "tl.program_id(0)" if narrow else "tl.program_id(0).to(tl.int64)"
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

    def _columns(self) -> None:
        tile = self.tile
        lane = f"tl.arange(0, {tile.lanes})[None, :, None, None]"
        deep = f"tl.arange(0, {tile.depth})[None, None, :, None]"
        near = f"tl.arange(0, {tile.vector})[None, None, None, :]"
        name = "block" if tile.looped else COLUMNS
        parts = [f"{lane} * {tile.vector}" if tile.vector > 1 else lane]
        parts += [f"{deep} * {tile.lanes * tile.vector}"] if tile.depth > 1 else []
        parts += [near] if tile.vector > 1 else []
        self.add(f"{name} = {' + '.join(parts)}")
        mask = f"{COLUMNS} < {self.program.columns}" if self.program.columns % tile.columns != 0 else ""
        self._space(COLUMNS, tile.shape, "[:, None, None, None]", COLUMNS, mask)

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

    def _sweep(self, step: Pass) -> None:
        if not self.tile.looped:
            for part in step.sweep:
                self._step(part)
            return
        folds = [fold for fold in (self._fold(part, step.sweep) for part in step.sweep) if fold is not None]
        for fold in folds:
            for line in fold.before:
                self.add(line)
        self.add(f"for c0 in range(0, {self.program.columns}, {self.tile.columns}):")
        self.indent += 1
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

    def _fold(self, part: Statement | Store, sweep: Sequence[Statement | Store]) -> Fold | None:
        if isinstance(part, Reduce):
            if any(part is first and second in sweep for first, second in self.pairs):
                return None
            partner = next((first for first, second in self.pairs if part is second), None)
            return OnlineFold(self, partner, part) if partner is not None else ReduceFold(self, part)
        return self.selector.fold(part) if isinstance(part, Select) else None

    # --- steps ---

    def _step(self, part: Statement | Store) -> None:
        if isinstance(part, Store):
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


def _reach(spec: TensorSpec) -> int:
    """One past the last element offset of a static tensor."""
    return 1 + sum((int(n) - 1) * int(s) for n, s in zip(spec.shape, spec.stride, strict=True))
