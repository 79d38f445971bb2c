"""How much memory it takes to judge a region's kernels."""

from __future__ import annotations

from collections.abc import Iterable

from ..graph.dims import evaluate
from ..graph.region import Region, TensorSpec

# What the bench was measured to hold at once where it is most, while a kernel is checked: of the inputs two sets that are
# timed, a third one, their guarded copies and what compares these; of the outputs those of two guarded runs, of the call
# that is as timed, and of the baselines.
_INPUT_COPIES, _OUTPUT_COPIES = 6, 6
_DOUBLE_BYTES = 8


def needed_bytes(region: Region, symbols: dict[str, int]) -> int:
    """An estimate of the most that the bench or the referee holds at once, in bytes of the region's device.

    The referee computes in float64 beside eager's own precision; of the values between, the largest counts.
    """
    inputs, outputs = _bytes(region.inputs, symbols), _bytes(region.output_specs, symbols)
    largest = max((_bytes(node.specs, symbols) for node in region.nodes), default=0)
    in_double = max((_doubles(node.specs, symbols) for node in region.nodes), default=0)
    bench = _INPUT_COPIES * inputs + _OUTPUT_COPIES * outputs + largest
    referee = (
        inputs + 2 * outputs + _doubles(region.inputs, symbols) + _doubles(region.output_specs, symbols) + in_double
    )
    return max(bench, referee)


def _bytes(specs: Iterable[TensorSpec], symbols: dict[str, int]) -> int:
    return sum(spec.size_bytes(symbols) for spec in specs)


def _doubles(specs: Iterable[TensorSpec], symbols: dict[str, int]) -> int:
    return sum(_DOUBLE_BYTES * evaluate(spec.numel, symbols) for spec in specs)
