"""The Triton kernel: a tile of features per sample, their products on the matrix units, the wanted ones to their columns.

``group`` samples are multiplied in one batched product (``group`` 1: one plain product), ``loop`` such groups follow one
another in a program, with their loads pipelined ``stages`` deep; or ``programs`` of them walk over all samples. Products
leave by one of two ways: ``scatter`` computes the column of every element of the square and stores the wanted ones;
``gather`` picks the products of consecutive columns out of the square and stores those.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from ....exc import EmissionError
from ....kernel import Argument, Kernel, Launch
from ...expression import TRITON_PRELUDE, TritonPrinter
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES, used_helpers
from ...family import Schedule
from ..common import symbols_of
from ..triton_tiles import cdiv, next_power_of_2
from .pairs import KnownPairs, LoadedPairs
from .pieces import free_parts
from .places import are_few, gathered, layers_of, polynomial
from .rows import RowLoader, needs_wide_offsets
from .structure import Plan, Segment

_FUNCTION = "interaction"
_COLUMNS_AT_ONCE = 1024
LARGEST_TILE = 128


def emit_triton(plan: Plan, schedule: Schedule) -> Kernel:
    """Raises ``EmissionError`` where the schedule cannot hold the plan."""
    writer = _Writer(plan, schedule)
    symbols = writer.symbols
    names = [f"in{k}" for k in range(len(plan.inputs))] + ["out0", *symbols]
    code = "\n".join([f"@triton.jit\ndef {_FUNCTION}({', '.join(names)}):", *_indented(writer.body(), 1)])
    source = "\n\n".join(part for part in (used_helpers(TRITON_PRELUDE, code), code) if part) + "\n"
    arguments = [Argument("input", k) for k in range(len(plan.inputs))] + [Argument("output", 0)]
    arguments += [Argument("size", k) for k in range(len(symbols))]
    launch = Launch(
        _FUNCTION,
        tuple(arguments),
        (writer.grid,),
        num_warps=int(schedule["warps"]),
        num_stages=int(schedule["stages"]),
    )
    return Kernel("triton", source, (launch,))


class _Writer:
    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self.plan, self.shape = plan, plan.shape
        self.group, self.loop = int(schedule["group"]), int(schedule["loop"])
        self.samples = self.group * self.loop
        self.programs, self.once = int(schedule["programs"]), bool(schedule["once"])
        self.tile = max(16, next_power_of_2(self.shape.features))
        self.chunk = min(max(16, next_power_of_2(self.shape.width)), int(schedule["chunk"]))
        self.store = str(schedule["store"])
        self.precision = str(schedule["precision"])
        self.wide = ".to(tl.int64)" if needs_wide_offsets(plan) else ""
        # Without the matrix units a thread holds neighbours of a row.
        self.blocked = self.shape.stored != "float32" or self.precision != "ieee"
        self.symbols = symbols_of([*plan.inputs, plan.output])
        batch = self.shape.batch
        walks_singly = bool(self.programs) and self.samples == 1
        self.exact = walks_singly or (isinstance(batch, int) and batch % self.samples == 0)
        if self.tile > LARGEST_TILE:
            raise EmissionError(f"{self.shape.features} features do not fit into one tile")
        if self.tile * self.tile * self.group > 1 << 15:
            raise EmissionError("too many products at once")
        if self.programs and self.loop > 1:
            raise EmissionError("programs that walk over all samples take one group a turn")

    @property
    def grid(self) -> str:
        return str(self.programs or cdiv(self.shape.batch, self.samples))

    def body(self) -> Iterator[str]:
        lead = "None, " if self.group > 1 else ""
        if self.wide:
            for name in self.symbols:
                yield f"{name} = {name} + tl.program_id(0).to(tl.int64) * 0"
        yield f"rows = tl.arange(0, {self.tile}){self.wide}[{lead}:, None]"
        yield f"others = tl.arange(0, {self.tile}){self.wide}[{lead}None, :]"
        for number, segment in enumerate(self.plan.segments):
            yield from self._prepared(number, segment)
        yield f"first = tl.program_id(0).to(tl.int64) * {self.samples}"
        if self.programs:
            step = f"tl.num_programs(0) * {self.samples}"
            yield f"for turn in tl.range(first, {self.shape.batch}, {step}):"
            yield from _indented(self._samples("turn"), 1)
        elif self.loop == 1:
            yield from self._samples("first")
        else:
            yield f"for step in tl.range(0, {self.loop}):"
            yield from _indented(self._samples(f"first + step * {self.group}"), 1)

    def _samples(self, start: str) -> Iterator[str]:
        """The work of one group of samples."""
        yield f"b = {start}"
        if self.group > 1:
            yield f"bs = b + tl.arange(0, {self.group})[:, None]"
            yield f"b = b + tl.arange(0, {self.group})[:, None, None]"
            yield f"lives = bs < {self.shape.batch}"
        yield f"live = b < {self.shape.batch}"
        yield from self._products()
        for number, segment in enumerate(self.plan.segments):
            if segment.pairs is None:
                yield from self._dense(number, segment)
            elif self._scatters(segment):
                yield from self._scatter(number, segment)
            else:
                yield from self._gather(number, segment)

    # --- products ---

    def _products(self) -> Iterator[str]:
        loader = RowLoader(self.plan, self.tile, self.chunk, self.group, self.exact, self.once)
        swapped = "tl.trans(x, (0, 2, 1))" if self.group > 1 else "tl.trans(x)"
        precision = f', input_precision="{self.precision}"' if self.shape.stored == "float32" else ""
        if self.chunk >= self.shape.width:
            yield from loader.load("0")
            yield f"z = tl.dot(x, {swapped}{precision})"
            return
        shape = f"[{self.group}, {self.tile}, {self.tile}]" if self.group > 1 else f"[{self.tile}, {self.tile}]"
        yield f"z = tl.zeros({shape}, {TRITON_TYPES[self.shape.held]})"
        yield f"for depth in tl.range(0, {self.shape.width}, {self.chunk}):"
        yield from _indented(loader.load("depth"), 1)
        yield f"  z = tl.dot(x, {swapped}, z{precision})"

    # --- columns that hold no products ---

    def _dense(self, number: int, segment: Segment) -> Iterator[str]:
        size = min(next_power_of_2(segment.count), _COLUMNS_AT_ONCE)
        lead = "None, " if self.group > 1 else ""
        wide = segment.count > size
        if wide:
            yield f"for column{number} in tl.range(0, {segment.count}, {size}):"
        start = f"column{number} + " if wide else ""
        yield from _indented(self._dense_block(number, segment, f"{start}tl.arange(0, {size})", lead), int(wide))

    def _dense_block(self, number: int, segment: Segment, columns: str, lead: str) -> Iterator[str]:
        b, live = ("bs", "lives") if self.group > 1 else ("b", "live")
        yield f"c{number} = ({columns}){self.wide}" + (f"[{lead}:]" if lead else "")
        yield f"m{number} = (c{number} < {segment.count}) & {live}"
        printer = TritonPrinter(self.plan.inputs, live, prefix=f"v{number}_")
        printer.name(ex.var("b", self.shape.batch), b)
        _name_all(printer, segment.value, "c", f"c{number}")
        value = self._unrounded(segment.value)
        if value.op == "load" and self.plan.inputs[value.value].dtype == self.plan.output.dtype:
            at = printer.linear(value)
            yield from printer.lines
            result = f"tl.load(in{value.value} + {at}, mask=m{number}, other=0)"
        else:
            result = yield from _computed(printer, value, {"c"}, f"m{number}")
        at = self._address(b, f"({segment.start} + c{number})")
        yield f"tl.store({at}, {result}, mask=m{number})"

    def _address(self, b: str, column: str) -> str:
        step = self.plan.column_stride
        return f"out0 + {b} * {self.plan.row_stride} + {column if step == 1 else f'{column} * {step}'}"

    # --- columns that hold products ---

    def _scatters(self, segment: Segment) -> bool:
        known = isinstance(segment.pairs, KnownPairs) and are_few(segment.pairs)
        return known and (self.store == "scatter" or self.group > 1)

    def _prepared(self, number: int, segment: Segment) -> Iterator[str]:
        """What does not depend on the sample."""
        if segment.pairs is None:
            return
        if self.group > 1 and not self._scatters(segment):
            raise EmissionError("these pairs are gathered, one sample at a time")
        if self._scatters(segment):
            yield from self._columns(number, segment)
        elif segment.count <= _COLUMNS_AT_ONCE:
            yield from self._picked(number, segment, f"tl.arange(0, {next_power_of_2(segment.count)})")

    def _columns(self, number: int, segment: Segment) -> Iterator[str]:
        """For every element of the square, its column and whether it is wanted; once per run that a feature takes part in."""
        assert isinstance(segment.pairs, KnownPairs)
        for layer, runs in enumerate(layers_of(segment.pairs)):
            name = f"{number}_{layer}"
            low = polynomial({run.row: run.first for run in runs}, "rows")
            count = dict.fromkeys(range(self.shape.features), 0) | {run.row: run.count for run in runs}
            counts = polynomial(count, "rows")
            base = polynomial({run.row: run.column - run.first for run in runs}, "rows")
            yield f"low{name} = {low}"
            yield f"wanted{name} = (others >= low{name}) & (others < low{name} + {counts})"
            if self.tile != self.shape.features:
                yield f"wanted{name} = wanted{name} & (rows < {self.shape.features})"
            yield f"place{name} = {base} + others"

    def _scatter(self, number: int, segment: Segment) -> Iterator[str]:
        assert isinstance(segment.pairs, KnownPairs)
        live = "" if self.exact else " & live"
        for layer in range(len(layers_of(segment.pairs))):
            name = f"{number}_{layer}"
            mask = f"wanted{name}"
            if live:
                yield f"keep{name} = wanted{name}{live}"
                mask = f"keep{name}"
            result = yield from self._finished(segment, f"place{name}", mask, "z", f"s{name}_")
            yield f"tl.store({self._address('b', f'({segment.start} + place{name})')}, {result}, mask={mask})"

    def _picked(self, number: int, segment: Segment, columns: str) -> Iterator[str]:
        """For consecutive columns, the elements of the square that belong there."""
        yield f"c{number} = ({columns}){self.wide}"
        if isinstance(segment.pairs, KnownPairs):
            yield f"pick{number} = {gathered(segment.pairs, f'c{number}', self.tile)}"
            yield f"pick{number} = tl.where(c{number} < {segment.count}, pick{number}, 0).to(tl.int32)"
            yield from self._placed(number)
            return
        assert isinstance(segment.pairs, LoadedPairs)
        yield f"m{number} = c{number} < {segment.count}"
        printer = TritonPrinter(self.plan.inputs, f"m{number}", prefix=f"p{number}_")
        for side in (segment.pairs.left, segment.pairs.right):
            _name_all(printer, side, "c", f"c{number}")
        left, right = printer.value(segment.pairs.left), printer.value(segment.pairs.right)
        yield from printer.lines
        # Where assertions are compiled out, an index out of range must still not leave the square.
        inside = f"tl.minimum(tl.maximum({left} * {self.tile} + {right}, 0), {self.tile * self.tile - 1})"
        yield f"pick{number} = tl.where(m{number}, {inside}, 0).to(tl.int32)"
        yield from self._placed(number)

    def _placed(self, number: int) -> Iterator[str]:
        """Where the picked elements of the square are once its blocks of 8 by 8 stand one after another."""
        if self.blocked:
            pick, size = f"pick{number}", self.tile.bit_length() - 1
            inner = 8 * self.tile - 8
            yield (
                f"{pick} = ({pick} & {self.tile * self.tile - 1 - inner}) | (({pick} & {self.tile - 8}) << 3)"
                f" | (({pick} >> {size - 3}) & 56)"
            )

    def _square(self, z: str) -> str:
        """The square as a line: row after row, or, as a warp of the matrix units holds it, block after block.

        To be picked from, the line goes through shared memory. Of consecutive rows the same columns lie in the same banks,
        so that the eight rows which a warp writes at once would wait for each other; a block fills all banks once.
        """
        if not self.blocked:
            return f"tl.reshape({z}, [{self.tile * self.tile}])"
        blocks = self.tile // 8
        split = f"tl.reshape({z}, [{blocks}, 8, {blocks}, 8])"
        return f"tl.reshape(tl.permute({split}, (0, 2, 1, 3)), [{self.tile * self.tile}])"

    def _gather(self, number: int, segment: Segment) -> Iterator[str]:
        # Products that are written as they are can be rounded before they move.
        plain = self._unrounded(segment.value).op == "var"
        z = f"z.to({TRITON_TYPES[self.plan.output.dtype]})" if plain else "z"
        square = self._square(z)
        if segment.count <= _COLUMNS_AT_ONCE:
            yield from self._gather_block(number, segment, square)
            return
        yield f"square{number} = {square}"
        yield f"for column{number} in tl.range(0, {segment.count}, {_COLUMNS_AT_ONCE}):"
        yield from _indented(self._picked(number, segment, f"column{number} + tl.arange(0, {_COLUMNS_AT_ONCE})"), 1)
        yield from _indented(self._gather_block(number, segment, f"square{number}"), 1)

    def _gather_block(self, number: int, segment: Segment, square: str) -> Iterator[str]:
        mask = f"(c{number} < {segment.count})" + ("" if self.exact else " & live")
        yield f"keep{number} = {mask}"
        yield f"picked{number} = tl.gather({square}, pick{number}, 0)"
        result = yield from self._finished(segment, f"c{number}", f"keep{number}", f"picked{number}", f"s{number}_")
        yield f"tl.store({self._address('b', f'({segment.start} + c{number})')}, {result}, mask=keep{number})"

    def _finished(self, segment: Segment, column: str, mask: str, z: str, prefix: str) -> Generator[str, None, str]:
        """Statements that compute the segment's value from the products ``z``; returns its name."""
        printer = TritonPrinter(self.plan.inputs, "live", prefix=prefix)
        _name_all(printer, segment.value, "c", column)
        _name_all(printer, segment.value, "z", z)
        result = yield from _computed(printer, self._unrounded(segment.value), {"c", "z"}, mask)
        return result

    def _unrounded(self, value: Expr) -> Expr:
        """The store itself rounds to the output's dtype."""
        return value.args[0] if value.op == "round" and value.value == self.plan.output.dtype else value


def _computed(printer: TritonPrinter, value: Expr, inner: set[str], mask: str) -> Generator[str, None, str]:
    """Statements for ``value``, what does not vary over the tile first; returns the result's name."""
    for part in free_parts(value, inner):
        printer.value(part)
    nested = printer.nested(mask)
    result = nested.value(value)
    yield from printer.lines
    yield from nested.lines
    return result


def _name_all(printer: TritonPrinter, value: Expr, variable: str, text: str) -> None:
    """Every variable of this name stands for the same values, whatever bound an expression knows of it."""
    for part in ex.walk(value):
        if part.op == "var" and part.value[0] == variable:
            printer.name(part, text)


def _indented(lines: Iterator[str], depth: int) -> Iterator[str]:
    for line in lines:
        yield "  " * depth + line
