"""Depthwise convolutions and their gradients by the input."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

from ....exc import UnsupportedError
from ....graph.meta import shape_of, tensor_of
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from .gradient import Gradient
from .stencil import Index, Stencil, both, each, held_type, static_shape
from .windows import Window


class Convolution(Stencil):
    """A depthwise convolution; ``multiplier`` results share one channel of the source."""

    def __init__(self, core: torch.fx.Node) -> None:
        source, self.weight, self.bias, stride, padding, dilation, transposed, _, groups = core.args
        assert isinstance(source, torch.fx.Node) and isinstance(self.weight, torch.fx.Node)
        self.source = source
        results, per_group, *taps = static_shape(self.weight)
        rank = len(taps)
        _check_depthwise(core, source, per_group, groups, rank)
        if transposed:
            raise UnsupportedError("structure", f"{core} is transposed")
        self.multiplier = results // int(groups)  # type: ignore[arg-type]
        self.held = held_type(source)
        own = each(padding, rank)
        self.skips = not _multiplies_padding(tensor_of(source))
        fronts = [0] * rank
        if not any(own):
            fronts = self._absorb_padding(source, rank, 0.0)
            self.skips = not self.absorbed
        sizes = shape_of(self.source)[-rank:]
        self.windows = tuple(
            Window(count, size, step, -front - pad, far)
            for count, size, step, front, pad, far in zip(
                taps, sizes, each(stride, rank), fronts, own, each(dilation, rank), strict=True
            )
        )

    def lead(self, index: Index) -> Index:
        lead = super().lead(index)
        return (*lead[:-1], ex.idivmod(lead[-1], self.multiplier)[0])

    def weighed(
        self, b: ExpressionBuilder, index: Index, taps: Index, value: Expr, positions: Index, inside: tuple[Expr, ...]
    ) -> tuple[Expr, tuple[Expr, ...]]:
        channel = super().lead(index)[-1]
        assert isinstance(self.weight, torch.fx.Node)
        weight = ex.cast(b.build(self.weight, (channel, ex.index(0), *taps)), self.held)
        if not self.skips:
            zero = ex.const(0, self.held)
            for condition in reversed(inside):
                value = ex.make("where", self.held, (condition, value, zero))
            inside = ()
        return ex.make("mul", self.held, (value, weight)), inside

    def finish(self, b: ExpressionBuilder, index: Index, folded: Expr) -> Expr:
        if not isinstance(self.bias, torch.fx.Node):
            return folded
        bias = ex.cast(b.build(self.bias, (super().lead(index)[-1],)), self.held)
        return ex.make("add", self.held, (folded, bias))


class ConvolutionGradient(Gradient):
    """The gradient of a depthwise convolution by its input."""

    def __init__(self, core: torch.fx.Node) -> None:
        gradient, source, weight = core.args[:3]
        stride, padding, dilation, transposed, _, groups = core.args[4:10]
        assert isinstance(gradient, torch.fx.Node) and isinstance(source, torch.fx.Node)
        assert isinstance(weight, torch.fx.Node)
        self.source, self.weight, self.shapes = gradient, weight, (source,)
        results, per_group, *taps = static_shape(weight)
        rank = len(taps)
        _check_depthwise(core, source, per_group, groups, rank)
        if transposed or results != int(groups):  # type: ignore[arg-type]
            raise UnsupportedError("structure", f"{core} is transposed or has several results per channel")
        self.held = held_type(gradient)
        self.gather(taps, each(stride, rank), each(padding, rank), each(dilation, rank))

    def weighed(
        self, b: ExpressionBuilder, index: Index, taps: Index, value: Expr, positions: Index, inside: tuple[Expr, ...]
    ) -> tuple[Expr, tuple[Expr, ...]]:
        own, fits = self.numbers(index, taps)
        at = [o if f.op == "const" else ex.make("within", "int64", (o,), (count,))
              for o, f, count in zip(own, fits, self.own_taps, strict=True)]  # fmt: skip
        weight = ex.cast(b.build(self.weight, (self.lead(index)[-1], ex.index(0), *at)), self.held)
        value = ex.make("mul", self.held, (value, weight))
        return value, tuple(both(one, other) for one, other in zip(fits, inside, strict=True))


def _multiplies_padding(source: torch.Tensor) -> bool:
    """As eager does on a CPU without oneDNN, which has no double and on most processors no half: it shows where a weight
    is infinite."""
    if source.device.type != "cpu" or source.dtype not in (torch.float16, torch.float64):
        return False
    return source.dtype == torch.float64 or not torch.ops.mkldnn._is_mkldnn_fp16_supported()


def _check_depthwise(core: torch.fx.Node, source: torch.fx.Node, per_group: int, groups: Any, rank: int) -> None:
    shape = shape_of(source)
    if per_group != 1 or groups != shape[len(shape) - rank - 1]:
        raise UnsupportedError("structure", f"{core} adds up {per_group} channels for each result")
