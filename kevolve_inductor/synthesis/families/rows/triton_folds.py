"""What a Triton kernel keeps while it walks over the columns block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....exc import EmissionError
from ...expression import expression as ex
from ...expression.triton import TRITON_TYPES
from .program import COLUMNS, Reduce

if TYPE_CHECKING:
    from .triton_writer import TritonWriter

_EXTREMES = {"amax": "kv_max", "amin": "kv_min"}
_OF_COLUMNS = {"sum": "kv_row_sum", "amax": "kv_row_most", "amin": "kv_row_least"}


class Fold(ABC):
    """One result of a sweep: what stands ``before`` the loop, ``inside`` and ``after`` it."""

    def __init__(self, before: Sequence[str]) -> None:
        self.before = list(before)

    def prepare(self) -> None:  # noqa: B027 - most have nothing to find out
        """Add what has to be known of the row before the sweep."""

    @abstractmethod
    def inside(self) -> None:
        """Add the statements for one block."""

    @abstractmethod
    def after(self) -> None:
        """Add the statements that define the result."""


class ReduceFold(Fold):
    def __init__(self, writer: TritonWriter, reduce: Reduce) -> None:
        self.writer, self.reduce = writer, reduce
        self.name = writer.fresh("a")
        kind = TRITON_TYPES[reduce.value.dtype]
        super().__init__([f"{self.name} = tl.full({writer.tile.shape}, {identity(reduce)}, {kind})"])

    def inside(self) -> None:
        value = self.writer.masked(COLUMNS, self.reduce.value, identity(self.reduce))
        self.writer.add(f"{self.name} = {combined(self.reduce, self.name, value)}")

    def after(self) -> None:
        self.writer.define_reduced(self.reduce, self.name)


class OnlineFold(Fold):
    """Running maximum and sum of exponentials below it, per thread of a row; brought together at the end.

    So a block costs one exponential for each element and one for each thread. ``below`` sums what is below the maximum.
    """

    def __init__(self, writer: TritonWriter, top: Reduce, total: Reduce, below: Reduce | None) -> None:
        self.writer, self.top, self.total, self.below = writer, top, total, below
        self.m, self.s, self.d, self.n = (writer.fresh(prefix) for prefix in "msdn")
        kind = TRITON_TYPES[top.value.dtype]
        self.exp = "kv_exp_below" if top.value.dtype == "float32" else "tl.exp"
        shape = f"[{writer.tile.rows}, {writer.tile.lanes}]"
        before = [f"{self.m} = tl.full({shape}, float('-inf'), {kind})", f"{self.s} = tl.zeros({shape}, {kind})"]
        if below is not None:
            before += [f"{self.d} = tl.zeros({shape}, {kind})", f"{self.n} = tl.zeros({shape}, {kind})"]
        super().__init__(before)

    def inside(self) -> None:
        w, m, s = self.writer, self.m, self.s
        new, base, x = w.fresh("m"), w.fresh("m"), w.fresh("x")
        values = w.masked(COLUMNS, self.top.value, "float('-inf')")
        w.add(f"{x} = {w.per_lane(values)}")
        w.add(f"{new} = kv_max({m}, tl.reduce({x}, 2, kv_max))")
        # Nothing but -inf so far: exponentials are taken below zero instead, where they vanish.
        w.add(f"{base} = tl.where({new} == float('-inf'), 0.0, {new})")
        w.add(f"{x} = {x} - {base}[:, :, None]")
        w.add(f"{s} = {s} * {self.exp}({m} - {base}) + tl.sum({self.exp}({x}), 2)")
        if self.below is not None:
            self._sum_below(x, base)
        w.add(f"{m} = {new}")

    def _sum_below(self, x: str, base: str) -> None:
        """What was summed so far is as much lower as the maximum is higher; below none it is nothing."""
        w, d, n = self.writer, self.d, self.n
        mask = w.spaces[COLUMNS].axis_mask
        full = f"tl.zeros({w.tile.shape}, tl.int1)"
        inside = w.per_lane(f"({full} | ({mask}))") if mask else ""
        w.add(f"{d} += tl.where({n} == 0, 0.0, {n} * ({self.m} - {base}))")
        w.add(f"{d} += tl.sum({f'tl.where({inside}, {x}, 0.0)' if mask else x}, 2)")
        w.add(f"{n} += {f'tl.sum({inside}.to(tl.float32), 2)' if mask else f'{float(w.tile.per_thread)}'}")

    def after(self) -> None:
        if self.writer.shared:
            self._exchange()
        w, m, s = self.writer, self.m, self.s
        w.define_scalar(self.top.result, w.along("amax", m))
        top = str(self.top.result.value[0])
        base = w.fresh("m")
        w.add(f"{base} = tl.where({top} == float('-inf'), 0.0, {top}){'' if w.one_row else '[:, None]'}")
        self._defined(self.total, top, w.along("sum", f"{s} * {self.exp}({m} - {base})"))
        if self.below is not None:
            moved = f"tl.where({self.n} == 0, 0.0, {self.n} * ({m} - {base}))"
            self._defined(self.below, top, w.along("sum", f"{self.d} + {moved}"))

    def _exchange(self) -> None:
        """What all threads of a part have becomes one of as many as there are parts."""
        w, m = self.writer, self.m
        top, base = w.fresh("m"), w.fresh("m")
        w.add(f"{top} = tl.reduce({m}, 1, kv_max)")
        w.add(f"{base} = tl.where({top} == float('-inf'), 0.0, {top})[:, None]")
        values = [top, f"tl.sum({self.s} * {self.exp}({m} - {base}), 1)"]
        if self.below is None:
            self.m, self.s = w.exchanged(values, ["float('-inf')", "0"])
            return
        moved = f"tl.where({self.n} == 0, 0.0, {self.n} * ({m} - {base}))"
        values += [f"tl.sum({self.d} + {moved}, 1)", f"tl.sum({self.n}, 1)"]
        self.m, self.s, self.d, self.n = w.exchanged(values, ["float('-inf')", "0", "0", "0"])

    def _defined(self, reduce: Reduce, top: str, text: str) -> None:
        self.writer.define_scalar(reduce.result, f"tl.where({top} == float('-inf'), float('nan'), {text})")


class DeviationFold(Fold):
    """Running mean and sum of squares off it, per element of the tile; brought together at the end.

    B. P. Welford, "Note on a method for calculating corrected sums of squares and products", 1962; parts are joined as in
    T. F. Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979. The sum itself is
    kept beside the mean, which loses more where numbers are not finite.
    """

    def __init__(self, writer: TritonWriter, total: Reduce, squares: Reduce) -> None:
        self.writer, self.total, self.squares = writer, total, squares
        self.sum, self.mean, self.off, self.n = (writer.fresh(prefix) for prefix in "ameq")
        kind = TRITON_TYPES[total.value.dtype]
        zeros = f"tl.zeros({writer.tile.shape}, {kind})"
        before = [f"{name} = {zeros}" for name in (self.sum, self.mean, self.off)]
        super().__init__([*before, f"{self.n} = tl.zeros([1, 1, 1, 1], {kind})"])

    def inside(self) -> None:
        w, mask = self.writer, self.writer.spaces[COLUMNS].axis_mask
        x, d = w.fresh("x"), w.fresh("d")
        w.add(f"{x} = {w.whole(COLUMNS, self.total.value)}")
        w.add(f"{self.n} += 1.0")
        w.add(f"{d} = {f'tl.where({mask}, {x} - {self.mean}, 0.0)' if mask else f'{x} - {self.mean}'}")
        w.add(f"{self.sum} += {f'tl.where({mask}, {x}, 0.0)' if mask else x}")
        w.add(f"{self.mean} += {d} * (1.0 / {self.n})")
        w.add(f"{self.off} += {d} * ({x} - {self.mean})")

    def after(self) -> None:
        w, mask = self.writer, self.writer.spaces[COLUMNS].axis_mask
        # Of the last block some elements have one number less than the others, or none.
        counts = f"tl.where({mask}, {self.n}, {self.n} - 1.0)" if mask else self.n
        part, between = w.fresh("n"), w.fresh("d")
        if w.shared:
            total = w.fresh("a")
            w.add(f"{total} = {reduced(self.total, self.sum)}")
            mean = f"({total} / {self._columns('part')})[:, None, None, None]"
        else:
            w.define_scalar(self.total.result, reduced(self.total, self.sum))
            mean = f"({self.total.result.value[0]} / {float(w.program.columns)})[:, None, None, None]"
        w.add(f"{part} = {counts}")
        w.add(f"{between} = tl.where({part} > 0.0, {self.mean} - {mean}, 0.0)")
        squares = reduced(self.squares, f"{self.off} + {part} * {between} * {between}")
        if w.shared:
            squares = self._of_parts(total, squares)
        w.define_scalar(self.squares.result, squares)

    def _columns(self, part: str) -> str:
        """How many columns parts have, as floating-point numbers."""
        span, columns = self.writer.tile.span, self.writer.program.columns
        return f"tl.maximum(tl.minimum({span}, {columns} - ({part}) * {span}), 0).to(tl.float32)"

    def _of_parts(self, total: str, squares: str) -> str:
        """Defines the sum of all parts; their squares off its mean."""
        w = self.writer
        sums, own = w.exchanged([total, squares], ["0", "0"])
        w.define_scalar(self.total.result, w.along("sum", sums))
        count, off = w.fresh("n"), w.fresh("d")
        w.add(f"{count} = {self._columns('which')}")
        mean = f"({self.total.result.value[0]} / {float(w.program.columns)}){'' if w.one_row else '[:, None]'}"
        w.add(f"{off} = tl.where({count} > 0.0, {sums} / {count} - {mean}, 0.0)")
        return str(w.along("sum", f"{own} + {count} * {off} * {off}"))


def identity(reduce: Reduce) -> str:
    """What does not change a reduction's result."""
    if reduce.op == "sum":
        return "0"
    if reduce.value.dtype in ex.FLOATS:
        return "float('-inf')" if reduce.op == "amax" else "float('inf')"
    if reduce.value.dtype == "bool":
        raise EmissionError("extremes of booleans")
    bits = {"int64": 63, "int32": 31, "int16": 15, "int8": 7}.get(reduce.value.dtype)
    if bits is None:
        return "0" if reduce.op == "amax" else "255"
    return f"(-{2**bits})" if reduce.op == "amax" else str(2**bits - 1)


def reduced(reduce: Reduce, text: str) -> str:
    """Of a whole axis. Columns are reduced axis by axis: so results have the layout that they are used in."""
    if reduce.axis == COLUMNS:
        return f"{_OF_COLUMNS[reduce.op]}({text})"
    return over(reduce.op, text, 1)


def over(op: str, text: str, axis: int) -> str:
    """A reduction of one axis of a tensor."""
    return f"tl.sum({text}, {axis})" if op == "sum" else f"tl.reduce({text}, {axis}, {_EXTREMES[op]})"


def combined(reduce: Reduce, one: str, other: str) -> str:
    """Of two partial results, element by element."""
    return f"{one} + {other}" if reduce.op == "sum" else f"{_EXTREMES[reduce.op]}({one}, {other})"
