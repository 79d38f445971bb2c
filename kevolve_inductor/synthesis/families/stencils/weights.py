"""Gradients of a depthwise convolution by its weight and its bias: sums over all positions of a channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch.fx

from ....exc import UnsupportedError
from ....graph.meta import spec_of, tensor_of
from ....graph.region import TensorSpec
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.access import accesses, flatten, linear, offset_of
from ...expression.expression import Expr
from ...expression.loops import Axis
from .. import common
from .plan import StencilPlan, tap_name
from .stencil import each, held_type, static_shape
from .windows import Window

CHANNEL = "channel"
# With more taps a thread of a GPU has no room for their sums.
_MOST_TAPS = 64


@dataclass(frozen=True)
class WeightPlan:
    """``gradient`` times ``source`` is added up over ``axes`` for every tap of ``windows`` and every ``channel``.

    ``source`` counts where the positions of all windows are inside, which ``places`` (variables of ``axes``) run along.
    ``weight`` and ``bias`` are the outputs' numbers, ``weight_at`` the element of the first at a channel and a tap,
    ``bias_step`` how far the second's elements are from each other.
    """

    held: str
    windows: tuple[Window, ...]
    places: tuple[str, ...]
    channel: Axis
    axes: tuple[Axis, ...]
    gradient: Expr
    source: Expr
    weight: int | None
    weight_at: Expr
    bias: int | None
    bias_step: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def taps(self) -> int:
        return math.prod(window.taps for window in self.windows)

    @property
    def positions(self) -> int:
        return math.prod(int(extent) for _, extent in self.axes)

    @cached_property
    def has_channels_last(self) -> bool:
        """Whether neighbouring channels are next to each other in memory."""
        reads = accesses([flatten(self.source, self.inputs)])
        return any(linear(offset_of(read)).of(CHANNEL) == 1 for read in reads) and self.channel[1] != 1


@dataclass(frozen=True)
class WeightReading:
    """What of a plan is known before all inputs and outputs of its region are."""

    gradient: Expr
    source: Expr
    windows: tuple[Window, ...]
    channel: Axis
    axes: tuple[Axis, ...]
    held: str


def read_weights(b: ExpressionBuilder, core: torch.fx.Node) -> WeightReading:
    """Reads ``core``, a depthwise ``convolution_backward``. Raises ``UnsupportedError``."""
    gradient, source, weight = core.args[:3]
    stride, padding, dilation = core.args[4:7]
    assert (
        isinstance(gradient, torch.fx.Node) and isinstance(source, torch.fx.Node) and isinstance(weight, torch.fx.Node)
    )
    taps = static_shape(weight)[2:]
    rank = len(taps)
    if math.prod(taps) > _MOST_TAPS:
        raise UnsupportedError("size", f"sums for {math.prod(taps)} taps at once")
    sizes, results = static_shape(source)[-rank:], static_shape(gradient)
    windows = tuple(
        Window(count, size, step, -pad, far)
        for count, size, step, pad, far in zip(
            taps, sizes, each(stride, rank), each(padding, rank), each(dilation, rank), strict=True
        )
    )
    axes = [("batch", results[0]), *((f"p{d}", size) for d, size in enumerate(results[2:]))]
    batch, *places = (ex.var(name, size) for name, size in axes)
    channel = ex.var(CHANNEL, results[1])
    held = held_type(gradient)
    positions = [
        window.clamp(window.position(at, ex.var(tap_name(d), window.taps)), d)
        for d, (window, at) in enumerate(zip(windows, places, strict=True))
    ]
    values = [ex.cast(b.build(gradient, (batch, channel, *places)), held),
              ex.cast(b.build(source, (batch, channel, *positions)), held)]  # fmt: skip
    if weight not in b.inlined:
        # Its shape is a part of the region, even if its elements are not read.
        b.input_index(weight)
    return WeightReading(values[0], values[1], windows, (CHANNEL, results[1]), tuple(axes), held)


def weight_plan(
    reading: WeightReading, weight: torch.fx.Node | None, bias: torch.fx.Node | None, outputs: Sequence[torch.fx.Node],
    inputs: Sequence[torch.fx.Node],
) -> WeightPlan:  # fmt: skip
    """The plan of a region with these inputs and outputs, of which ``weight`` and ``bias`` are two."""
    at = ex.index(0)
    if weight is not None:
        first, _, *steps = spec_of(tensor_of(weight)).stride
        taps = [ex.imul(ex.var(tap_name(d)), ex.size(step)) for d, step in enumerate(steps)]
        at = ex.isum([ex.imul(ex.var(*reading.channel), ex.size(first)), *taps])
    return WeightPlan(
        reading.held, reading.windows, tuple(name for name, _ in reading.axes[1:]), reading.channel, reading.axes,
        reading.gradient, reading.source, outputs.index(weight) if weight is not None else None, at,
        outputs.index(bias) if bias is not None else None, int(tensor_of(bias).stride()[0]) if bias is not None else 1,
        common.specs_of(inputs), common.specs_of(outputs),
    )  # fmt: skip


@dataclass(frozen=True)
class BackwardPlan:
    """All gradients of a convolution: ``stencil`` for its input, where that is asked for, and sums for the rest."""

    stencil: StencilPlan | None
    weights: WeightPlan

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.weights.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.weights.outputs

    @property
    def symbols(self) -> tuple[str, ...]:
        """None: sums are over a number of positions that is known."""
        return ()
