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


class Fold(ABC):
    """One result of a sweep: what stands ``before`` the loop, ``inside`` and ``after`` it."""

    def __init__(self, before: Sequence[str]) -> None:
        self.before = list(before)

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
        combine = {"sum": "{0} + {1}", "amax": "kv_max({0}, {1})", "amin": "kv_min({0}, {1})"}[self.reduce.op]
        self.writer.add(f"{self.name} = {combine.format(self.name, value)}")

    def after(self) -> None:
        text = reduced(self.reduce, self.writer.flat(COLUMNS, self.name))
        self.writer.define_scalar(self.reduce.result, text)


class OnlineFold(Fold):
    """Running maximum and sum of exponentials below it, per thread of a row; brought together at the end.

    So a block costs one exponential for each element and one for each thread.
    """

    def __init__(self, writer: TritonWriter, top: Reduce, total: Reduce) -> None:
        self.writer, self.top, self.total = writer, top, total
        self.m, self.s = writer.fresh("m"), writer.fresh("s")
        kind = TRITON_TYPES[top.value.dtype]
        shape = f"[{writer.tile.rows}, {writer.tile.lanes}]"
        super().__init__(
            [f"{self.m} = tl.full({shape}, float('-inf'), {kind})", f"{self.s} = tl.zeros({shape}, {kind})"]
        )

    def inside(self) -> None:
        w, m, s = self.writer, self.m, self.s
        new, base, x = w.fresh("m"), w.fresh("m"), w.fresh("x")
        values = w.masked(COLUMNS, self.top.value, "float('-inf')")
        w.add(f"{x} = {w.per_lane(values)}")
        w.add(f"{new} = kv_max({m}, tl.reduce({x}, 2, kv_max))")
        # Nothing but -inf so far: exponentials are taken below zero instead, where they vanish.
        w.add(f"{base} = tl.where({new} == float('-inf'), 0.0, {new})")
        w.add(f"{s} = {s} * tl.exp({m} - {base}) + tl.sum(tl.exp({x} - {base}[:, :, None]), 2)")
        w.add(f"{m} = {new}")

    def after(self) -> None:
        w, m, s = self.writer, self.m, self.s
        w.define_scalar(self.top.result, f"tl.reduce({m}, 1, kv_max)")
        top = str(self.top.result.value[0])
        base = w.fresh("m")
        w.add(f"{base} = tl.where({top} == float('-inf'), 0.0, {top})[:, None]")
        total = f"tl.sum({s} * tl.exp({m} - {base}), 1)"
        w.define_scalar(self.total.result, f"tl.where({top} == float('-inf'), float('nan'), {total})")


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
    if reduce.op == "sum":
        return f"tl.sum({text}, 1)"
    combine = "kv_max" if reduce.op == "amax" else "kv_min"
    return f"tl.reduce({text}, 1, {combine})"
