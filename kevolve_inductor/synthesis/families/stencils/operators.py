"""The operators that are stencils, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch.fx

from ....graph.meta import target_name
from .convolutions import Convolution, ConvolutionGradient
from .pooling import Average, AverageGradient, Maximum
from .pooling_gradient import OPERATORS, MaximumGradient, is_scattered_maximum
from .stencil import Stencil

# Windows of more taps than this are reductions rather than stencils.
MOST_TAPS = 128

# The one operator with results that are no stencils: sums for the weight and the bias.
BACKWARD = "aten.convolution_backward.default"

_STENCILS: dict[str, Callable[[torch.fx.Node], Stencil]] = {
    "aten.convolution.default": Convolution,
    "aten.avg_pool1d.default": Average, "aten.avg_pool2d.default": Average, "aten.avg_pool3d.default": Average,
    "prims._low_memory_max_pool_with_offsets.default": Maximum,
    "aten.max_pool2d_with_indices.default": Maximum, "aten.max_pool3d_with_indices.default": Maximum,
    BACKWARD: ConvolutionGradient,
    "aten.avg_pool2d_backward.default": AverageGradient, "aten.avg_pool3d_backward.default": AverageGradient,
    **dict.fromkeys(OPERATORS, MaximumGradient),
}  # fmt: skip


def is_stencil(node: torch.fx.Node) -> bool:
    """Whether ``node`` may be one; a convolution that mixes all channels is not."""
    name = target_name(node)
    if name not in _STENCILS:
        return is_scattered_maximum(node)
    return not (name in _GROUPS and node.args[_GROUPS[name]] == 1)


def stencil_of(core: torch.fx.Node) -> Stencil:
    """Raises ``UnsupportedError`` where ``core`` is none after all."""
    return _STENCILS.get(target_name(core), MaximumGradient)(core)


# Where these operators have the number of groups of channels.
_GROUPS = {"aten.convolution.default": 8, BACKWARD: 9}
