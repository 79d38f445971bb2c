"""What the family of scatters reads off a graph: events, the row that each belongs to, and what is combined there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from ....graph.dims import Dim
from ....graph.region import TensorSpec
from ...expression.access import flatten
from ...expression.expression import FLOATS, Expr

Axis = tuple[str, Dim]
Combine = Literal["add", "maximum", "minimum"]

# The variables that count events and rows, and the one that holds an element of the result so far.
EVENT, ROW, ELEMENT = "event", "row", "element"


@dataclass(frozen=True)
class Scatter:
    """Rows start as ``base`` (over ROW and ``inner``); events combine ``value`` (over EVENT and ``inner``) with them.

    ``places`` are the coordinates of an event's row in axes of extents ``rows``. Events where ``condition`` is false, if
    there is one, change nothing. Events of one row are combined in their order, as eager does on a CPU. ``step`` is the
    number of elements from row to row of the result, ``offset`` that of an element within a row.
    """

    events: Dim
    rows: tuple[Dim, ...]
    inner: tuple[Axis, ...]
    places: tuple[Expr, ...]
    condition: Expr | None
    value: Expr
    base: Expr
    combine: Combine
    held: str
    step: Dim
    offset: Expr

    @property
    def neutral(self) -> float | int:
        """What combines with any value to give that value."""
        if self.combine == "add":
            return 0
        if self.held in FLOATS:
            return float("-inf") if self.combine == "maximum" else float("inf")
        limits = torch.iinfo(getattr(torch, self.held))
        return int(limits.min if self.combine == "maximum" else limits.max)

    def flat(self, inputs: tuple[TensorSpec, ...]) -> Scatter:
        """Addressed by element."""
        return replace(
            self,
            places=tuple(flatten(place, inputs) for place in self.places),
            condition=None if self.condition is None else flatten(self.condition, inputs),
            value=flatten(self.value, inputs),
            base=flatten(self.base, inputs),
            offset=flatten(self.offset, inputs),
        )


@dataclass(frozen=True)
class ScatterPlan:
    """``built`` holds loads; ``scatter`` is addressed by element, made when a kernel is first written."""

    built: Scatter
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]

    @cached_property
    def scatter(self) -> Scatter:
        return self.built.flat(self.inputs)
