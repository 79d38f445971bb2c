"""Gradients of strided windows by their source, which gather where the operator itself scattered."""

from __future__ import annotations

from collections.abc import Sequence

from ....exc import UnsupportedError
from ....graph.meta import shape_of
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from .stencil import Index, Stencil
from .windows import Window


class Gradient(Stencil):
    """The gradient of a strided window: each element of the input gathers from the results whose windows held it.

    Of place ``i`` of the input, tap ``t`` is result ``(i + padding) // stride - (taps - 1) + t``, in whose window the
    element had the number ``(i + padding) % stride + (taps - 1 - t) * stride``.
    """

    def gather(self, taps: Sequence[int], strides: Sequence[int], padding: Sequence[int], far: Sequence[int]) -> None:
        if any(step > 1 and wide > 1 for step, wide in zip(strides, far, strict=True)):
            raise UnsupportedError("structure", "the gradient of a window both strided and dilated")
        self.own_taps, self.strides, self.padding = tuple(taps), tuple(strides), tuple(padding)
        rank = len(taps)
        windows = []
        for count, step, pad, wide, size in zip(
            taps, strides, padding, far, shape_of(self.source)[-rank:], strict=True
        ):
            steps = -(-count // step)
            windows.append(Window(steps, size, 1, pad, wide, step, -(steps - 1) * wide))
        self.windows = tuple(windows)

    def own_tap(self, number: int, place: Expr, tap: Expr) -> tuple[Expr, Expr]:
        """The number that the element has in the window of a tap's result, and whether it is in that window."""
        step, count = self.strides[number], self.own_taps[number]
        at = ex.iadd(place, ex.index(self.padding[number]))
        last = ex.index(self.windows[number].taps - 1)
        back = ex.imul(ex.make("sub", "int64", (last, tap)), ex.index(step))
        own = ex.iadd(ex.idivmod(at, step)[1], back)
        fits = ex.const(True, "bool") if count % step == 0 else ex.make("lt", "bool", (own, ex.index(count)))
        return own, fits

    def finish(self, b: ExpressionBuilder, index: Index, folded: Expr) -> Expr:
        return folded

    def numbers(self, index: Index, taps: Index) -> tuple[Index, tuple[Expr, ...]]:
        places = index[len(index) - len(self.windows) :]
        pairs = [self.own_tap(d, at, tap) for d, (at, tap) in enumerate(zip(places, taps, strict=True))]
        return tuple(own for own, _ in pairs), tuple(fits for _, fits in pairs)
