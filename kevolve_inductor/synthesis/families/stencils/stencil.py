"""What a stencil is: windows over a source, what one tap of them contributes, and what is made of all taps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import dtype_name, shape_of, target_name, tensor_of
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from .plan import Kind
from .windows import Window

Index = tuple[Expr, ...]


class Stencil(ABC):
    """Reads ``source`` through one window for each of its last axes. ``index`` is always one into the operator's result.

    ``absorbed`` are nodes between the operator and its source; of ``shapes``, arguments too, no element is read.
    Raises ``UnsupportedError`` where the operator is not of the kind that its class is for.
    """

    kind: Kind = "sum"
    source: torch.fx.Node
    windows: tuple[Window, ...]
    held: str
    absorbed: tuple[torch.fx.Node, ...] = ()
    shapes: tuple[torch.fx.Node, ...] = ()

    def tap(self, b: ExpressionBuilder, index: Index, taps: Index) -> tuple[Expr, tuple[Expr, ...]]:
        """What one tap contributes, and for each window whether it contributes at all."""
        lead, places = self.lead(index), index[len(index) - len(self.windows) :]
        positions = [w.position(at, tap) for w, at, tap in zip(self.windows, places, taps, strict=True)]
        inside = tuple(w.is_inside(at, d) for d, (w, at) in enumerate(zip(self.windows, positions, strict=True)))
        clamped = [w.clamp(at, d) for d, (w, at) in enumerate(zip(self.windows, positions, strict=True))]
        value = ex.cast(b.build(self.source, (*lead, *clamped)), self.held)
        return self.weighed(b, index, taps, value, tuple(positions), inside)

    def lead(self, index: Index) -> Index:
        """Where the source is read in the axes that have no window."""
        return index[: len(index) - len(self.windows)]

    def weighed(
        self, b: ExpressionBuilder, index: Index, taps: Index, value: Expr, positions: Index, inside: tuple[Expr, ...]
    ) -> tuple[Expr, tuple[Expr, ...]]:
        return value, inside

    def _absorb_padding(self, source: torch.fx.Node, rank: int, fill: float) -> list[int]:
        """Takes as ``source`` what it is before its last ``rank`` axes are padded with ``fill``; the padding in front of each."""
        self.source, none = source, [0] * rank
        if target_name(source) != "aten.constant_pad_nd.default":
            return none
        inner, padding, *value = source.args
        pads: list[Any] = list(padding)  # type: ignore[arg-type]
        plain = len(pads) <= 2 * rank and all(isinstance(pad, int) and pad >= 0 for pad in pads)
        if not plain or (value[0] if value else 0.0) != fill or not isinstance(inner, torch.fx.Node):
            return none
        self.source, self.absorbed = inner, (source,)
        fronts = pads[::2][::-1]
        return [*none[len(fronts) :], *fronts]

    @abstractmethod
    def finish(self, b: ExpressionBuilder, index: Index, folded: Expr) -> Expr:
        """The operator's result, before it is rounded to its dtype."""


def held_type(node: torch.fx.Node) -> str:
    """The type in which contributions are added up and compared."""
    name = dtype_name(tensor_of(node).dtype)
    if name not in (*ex.FLOATS, *ex.LOW_PRECISION):
        raise UnsupportedError("dtype", f"a stencil over {name}")
    return "float32" if name in ex.LOW_PRECISION else name


def static_shape(node: torch.fx.Node) -> list[int]:
    return [known(size) for size in shape_of(node)]


def known(size: Dim) -> int:
    if not isinstance(size, int):
        raise UnsupportedError("dynamic", f"the size {size} is not known at compile time")
    return size


def each(value: Any, rank: int) -> list[int]:
    """A number for each axis, from a list of them, a list of one, or a number."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int) for number in values):
        raise UnsupportedError("dynamic", f"{value} is not known at compile time")
    return values * rank if len(values) == 1 else values


def both(one: Expr, other: Expr) -> Expr:
    return other if one.op == "const" else ex.make("logical_and", "bool", (one, other))
