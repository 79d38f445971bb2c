"""Pooling by averages and by maxima, and the gradient of averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import shape_of, target_name
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from .gradient import Gradient
from .plan import Kind
from .stencil import Index, Stencil, both, each, held_type, known
from .windows import Window, covered

# From the number of the tap where a maximum was found to its index in a flattened plane of the source.
PLACES = "prims._low_memory_max_pool_offsets_to_indices.default"


class _Counts:
    """How many elements an average is over, from arguments ``kernel_size, stride, padding, ceil_mode, count_include_pad,
    divisor_override``. ``sizes`` are those of the axes that are averaged, ``results`` those of the averages."""

    def __init__(self, arguments: Sequence[Any], sizes: Sequence[Dim], results: Sequence[Dim]) -> None:
        defaults: list[Any] = [None, [], 0, False, True, None]
        filled = [*arguments, *defaults[len(arguments) :]]
        kernel, stride, padding, _, self.includes_padding, self.divisor = filled
        rank = len(sizes)
        self.taps = each(kernel, rank)
        self.strides = each(stride, rank) if stride else self.taps
        self.padding = each(padding, rank)
        self.sizes, self.results = sizes, results

    def over(self, places: Index, held: str, is_whole_inside: bool) -> Expr:
        """The divisor of the average at ``places``; ``is_whole_inside``: all is counted where no tap leaves the source."""
        if self.divisor is not None:
            return ex.const(self.divisor, held)
        total = ex.index(1)
        for number, at in enumerate(places):
            total = ex.imul(total, self._along(number, at, number if is_whole_inside else None))
        return ex.cast(total, held)

    def _along(self, number: int, place: Expr, window: int | None) -> Expr:
        taps, step, pad = self.taps[number], self.strides[number], self.padding[number]
        size, results = self.sizes[number], self.results[number]
        low, high = (-pad, _plus(size, pad)) if self.includes_padding else (0, size)
        is_static = isinstance(high, int) and isinstance(results, int)
        if is_static and low <= -pad and (int(results) - 1) * step - pad + taps <= int(high):
            return ex.index(taps)
        start = ex.iadd(ex.imul(place, ex.index(step)), ex.index(-pad))
        return covered(start, taps, low, high, window)


class Average(Stencil):
    def __init__(self, core: torch.fx.Node) -> None:
        source, *arguments = _arguments(core, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                                        "divisor_override")  # fmt: skip
        rank = _rank_of(core)
        self.counts = _Counts(arguments, shape_of(source)[-rank:], shape_of(core)[-rank:])
        self.held = held_type(source)
        fronts = self._absorb_padding(source, rank, 0.0)
        self.windows = tuple(
            Window(taps, size, step, -front - pad)
            for taps, size, step, front, pad in zip(
                self.counts.taps, shape_of(self.source)[-rank:], self.counts.strides, fronts, self.counts.padding,
                strict=True,
            )
        )  # fmt: skip

    def finish(self, b: ExpressionBuilder, index: Index, folded: Expr) -> Expr:
        count = self.counts.over(index[len(index) - len(self.windows) :], self.held, is_whole_inside=True)
        return ex.make("truediv", self.held, (folded, count))


class Maximum(Stencil):
    """Pooling by the greatest element, of which it may also be asked where it was."""

    kind: Kind = "maximum"

    def __init__(self, core: torch.fx.Node) -> None:
        source, kernel, stride, padding, dilation = _arguments(core, "kernel_size", "stride", "padding", "dilation")[:5]
        rank = len(kernel)
        taps = each(kernel, rank)
        self.source, self.held = source, held_type(source)
        self.sizes = shape_of(source)[-rank:]
        asks = any(target_name(user) == "getitem" and user.args[1] == 1 for user in core.users)
        # A place in the padding would be another number, so there it stays what it is.
        fronts = [0] * rank if asks else self._absorb_padding(source, rank, -math.inf)
        self.padding = each(padding or 0, rank)
        self.windows = tuple(
            Window(count, size, step, -front - pad, far)
            for count, size, step, front, pad, far in zip(
                taps, shape_of(self.source)[-rank:], each(stride, rank) if stride else taps, fronts, self.padding,
                each(dilation or 1, rank), strict=True,
            )
        )  # fmt: skip

    def finish(self, b: ExpressionBuilder, index: Index, folded: Expr) -> Expr:
        return folded

    @property
    def plane(self) -> tuple[int, ...]:
        """Strides of a flattened plane of the source, as indices count it. Raises ``UnsupportedError`` for dynamic sizes."""
        sizes = [known(size) for size in self.sizes]
        if math.prod(sizes) >= 2**31:
            raise UnsupportedError("size", f"indices into {math.prod(sizes)} elements")
        return tuple(math.prod(sizes[d + 1 :]) for d in range(len(sizes)))

    def flat_index(self, index: Index, reach: Expr) -> Expr:
        """Where in a flattened plane of the source the element is that is ``reach`` away from its window's start."""
        places = index[len(index) - len(self.windows) :]
        starts = [
            ex.imul(ex.iadd(ex.imul(at, ex.index(window.stride)), ex.index(-pad)), ex.index(step))
            for at, window, pad, step in zip(places, self.windows, self.padding, self.plane, strict=True)
        ]
        return ex.make("add", "int64", (ex.isum(starts), ex.cast(reach, "int64")))


class AverageGradient(Gradient):
    def __init__(self, core: torch.fx.Node) -> None:
        gradient, source, *arguments = core.args
        assert isinstance(gradient, torch.fx.Node) and isinstance(source, torch.fx.Node)
        rank = _rank_of(core)
        self.source, self.shapes = gradient, (source,)
        self.held = held_type(gradient)
        self.counts = _Counts(arguments, shape_of(source)[-rank:], shape_of(gradient)[-rank:])
        self.gather(self.counts.taps, self.counts.strides, self.counts.padding, [1] * rank)

    def weighed(
        self, b: ExpressionBuilder, index: Index, taps: Index, value: Expr, positions: Index, inside: tuple[Expr, ...]
    ) -> tuple[Expr, tuple[Expr, ...]]:
        _, fits = self.numbers(index, taps)
        count = self.counts.over(positions, self.held, is_whole_inside=False)
        value = ex.make("truediv", self.held, (value, count))
        return value, tuple(both(one, other) for one, other in zip(fits, inside, strict=True))


def _rank_of(core: torch.fx.Node) -> int:
    return next(rank for rank in (1, 2, 3) if f"{rank}d" in target_name(core))


def _arguments(core: torch.fx.Node, *names: str) -> tuple[Any, ...]:
    """The source and the arguments called ``names``, as far as they are given."""
    given = {**dict(zip(names, core.args[1:], strict=False)), **core.kwargs}
    last = max((names.index(name) for name in given if name in names), default=-1)
    defaults = {"stride": [], "padding": 0, "dilation": 1, "ceil_mode": False, "count_include_pad": True}
    values = [given.get(name, defaults.get(name)) for name in names[: max(last + 1, 4)]]
    return (core.args[0], *values)


def _plus(size: Dim, more: int) -> Dim:
    if isinstance(size, int):
        return size + more
    return f"({size}) + {more}" if more else size
