"""``aten._embedding_bag``: its arguments by name, which positions belong to a bag, and what is folded over them."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import dtype_name, shape_of, spec_of, target_name, tensor_of
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.rules import checked
from .plan import POSITION, Combine, Span

_NAMES = ("weight", "indices", "offsets", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights",
          "include_last_offset", "padding_idx")  # fmt: skip
_DEFAULTS: dict[str, Any] = {"mode": 0, "per_sample_weights": None, "include_last_offset": False, "padding_idx": -1}
_MODES = ("sum", "mean", "max")


class Folds(Protocol):
    """Gives the variable that holds ``body`` combined over a span; ``fails`` are conditions under which eager raises."""

    def __call__(self, span: Span, body: Expr, combine: Combine, fails: tuple[Expr, ...] = ()) -> Expr: ...


class EmbeddingBag:
    """One call. Offsets must rise, begin at zero and end within the indices, as eager's documentation has it."""

    def __init__(self, node: torch.fx.Node, builder: ExpressionBuilder) -> None:
        arguments = _DEFAULTS | dict(zip(_NAMES, node.args, strict=False)) | node.kwargs
        self.builder = builder
        self.weight: torch.fx.Node = arguments["weight"]
        self.indices: torch.fx.Node = arguments["indices"]
        self.offsets: torch.fx.Node = arguments["offsets"]
        self.scale: torch.fx.Node | None = arguments["per_sample_weights"]
        self.mode = _MODES[arguments["mode"]]
        self.has_last = bool(arguments["include_last_offset"])
        self.events: Dim = shape_of(self.indices)[0]
        self.padding = int(arguments["padding_idx"])
        if self.padding >= 0 and (self.mode == "max" or (self.mode == "mean" and self.has_last)):
            raise UnsupportedError("unsupported", f"{node}: a padding index in bags of mode {self.mode}")
        self.length = self._length()

    def element(self, bag: Expr, column: Expr, folds: Folds) -> Expr:
        """Element ``column`` of the result of ``bag``."""
        span, fails = (Span.of(self.length), ()) if self.length is not None else self._span(bag)
        position = ex.var(POSITION, self.events if self.length is None else self.length)
        event = position if self.length is None else ex.iadd(ex.imul(bag, ex.index(self.length)), position)
        at = checked(ex.cast(self.builder.build(self.indices, (event,)), "int64"), shape_of(self.weight)[0], wrap=False)
        name = dtype_name(tensor_of(self.weight).dtype)
        held = "float32" if name in ex.LOW_PRECISION else name
        row = ex.cast(self.builder.build(self.weight, (at, column)), held)
        if self.mode == "max":
            result = self._largest(span, row, position, fails, folds)
        else:
            result = self._total(span, row, at, event, fails, folds)
            if self.mode == "mean":
                size = ex.make("maximum", "int64", (self._size(span, at, bag, folds), ex.index(1)))
                result = ex.make("truediv", held, (result, ex.cast(size, held)))
        return ex.cast(result, name)

    def _total(self, span: Span, row: Expr, at: Expr, event: Expr, fails: tuple[Expr, ...], folds: Folds) -> Expr:
        if self.scale is not None:
            row = ex.make("mul", row.dtype, (row, ex.cast(self.builder.build(self.scale, (event,)), row.dtype)))
        if self.padding >= 0:
            row = ex.make("where", row.dtype, (self._is_counted(at), row, ex.const(0, row.dtype)))
        return folds(span, row, "add", fails)

    def _is_counted(self, at: Expr) -> Expr:
        return ex.make("ne", "bool", (at, ex.index(self.padding)))

    def _size(self, span: Span, at: Expr, bag: Expr, folds: Folds) -> Expr:
        """By what eager divides: the bag's size without padding; the last bag's counts to the end of the indices."""
        if self.padding >= 0:
            return folds(span, ex.cast(self._is_counted(at), "int64"), "add")
        high = span.high if self.length is not None else self._to_the_end(bag, span.high)
        return ex.make("sub", "int64", (high, span.low))

    def _largest(self, span: Span, row: Expr, position: Expr, fails: tuple[Expr, ...], folds: Folds) -> Expr:
        """A NaN counts only where it comes first, since eager then finds nothing greater. An empty bag is zero."""
        later = ex.make("gt", "bool", (ex.make("as_value", "int64", (position,)), span.low))
        ignored = ex.make("logical_and", "bool", (later, ex.make("ne", "bool", (row, row))))
        row = ex.make("where", row.dtype, (ignored, ex.const(-math.inf, row.dtype), row))
        filled = ex.make("lt", "bool", (span.low, span.high))
        return ex.make("where", row.dtype, (filled, folds(span, row, "maximum", fails), ex.const(0, row.dtype)))

    # --- positions ---

    def _span(self, bag: Expr) -> tuple[Span, tuple[Expr, ...]]:
        low = ex.cast(self.builder.build(self.offsets, (bag,)), "int64")
        after = ex.make("within", "int64", (ex.iadd(bag, ex.index(1)),), (shape_of(self.offsets)[0],))
        following = ex.cast(self.builder.build(self.offsets, (after,)), "int64")
        high = following if self._ends_with_offsets() else self._to_the_end(bag, following)
        is_first = ex.make("eq", "bool", (bag, ex.index(0)))
        late = ex.make("logical_and", "bool", (is_first, ex.make("ne", "bool", (low, ex.index(0)))))
        fails = [
            ex.make("lt", "bool", pair) for pair in ((low, ex.index(0)), (high, low), (ex.size(self.events), high))
        ]
        return Span(low, high), (late, *fails)

    def _to_the_end(self, bag: Expr, following: Expr) -> Expr:
        last = ex.iadd(ex.size(shape_of(self.offsets)[0]), ex.index(-2 if self.has_last else -1))
        is_last = ex.make("eq", "bool", (bag, last))
        return ex.make("where", "int64", (is_last, ex.size(self.events), following))

    def _ends_with_offsets(self) -> bool:
        """On CPUs eager's library for contiguous rows goes by the last offset, everything else to the last index."""
        weight = spec_of(tensor_of(self.weight))
        by_library = weight.device == "cpu" and weight.dtype != "float64" and weight.stride[1] == 1
        return self.has_last and by_library and self.mode != "max" and self.padding < 0

    def _length(self) -> int | None:
        """The length of all bags, where offsets are multiples of it: indices were given as a matrix."""
        offsets, count = self.offsets, shape_of(self.offsets)[0]
        if target_name(offsets) != "prims.iota.default" or offsets.kwargs.get("start", 0) != 0 or self.has_last:
            return None
        step = offsets.kwargs.get("step", 1)
        fits = isinstance(step, int) and isinstance(count, int) and self.events == count * step
        return step if fits else None  # type: ignore[return-value]
