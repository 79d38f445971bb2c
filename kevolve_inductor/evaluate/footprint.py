"""How much memory it takes to judge a region's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..graph.blocks import BLOCK_ELEMENTS
from ..graph.cost import FREE
from ..graph.dims import evaluate
from ..graph.reference import dtype_of, is_entwined, last_uses, references
from ..graph.region import Region, TensorSpec
from ..kernel import Kernel

# What the bench was measured to hold at once where it is most, while a kernel is checked: of the inputs two sets that are
# timed, a third one, their guarded copies and what compares these; of the outputs those of two guarded runs, of the call
# that is as timed, and of the baselines.
_INPUT_COPIES, _OUTPUT_COPIES = 6, 6
_DOUBLE_BYTES = 8
# Memory between launches stands beside all that a compiled graph holds at that time, and others' code has little of it: a share
# of what a region reads and writes, and what no graph on a GPU misses.
_WORKSPACE_SHARE, _SPARE_BYTES = 0.25, 2**20
# Inputs are drawn in single precision, the most intricate ones from four tensors at once.
_DRAWN_BYTES = 4 * 4
# The distance of every element and whether it is wrong; what is held beside them of a block.
_COMPARED_BYTES, _BLOCK_DOUBLES = 9, 10


def needed_bytes(region: Region, symbols: dict[str, int]) -> int:
    """An estimate of the most that the bench or the referee holds at once, in bytes of the region's device.

    The referee computes in float64 beside eager's own precision, which is done first where that is possible.
    """
    specs = region.output_specs
    inputs, outputs, doubles = _bytes(region.inputs, symbols), _bytes(specs, symbols), _in_double(specs, symbols)
    drawn = _DRAWN_BYTES * max((evaluate(spec.numel, symbols) for spec in region.inputs), default=0)
    own = _peak(region, lambda spec: spec.size_bytes(symbols)) - inputs
    exact = _peak(region, lambda spec: _in_double((spec,), symbols))
    evaluated = own + exact if is_entwined(region) else max(own, outputs + exact)
    compared = outputs + doubles + _compared(specs, symbols)
    bench = max(_INPUT_COPIES * inputs + _OUTPUT_COPIES * outputs + own, inputs + drawn)
    referee = inputs + max(drawn, outputs + max(evaluated, compared))
    return max(bench, referee)


def workspace_bytes(kernel: Kernel, symbols: dict[str, int]) -> int:
    """What ``kernel`` takes of memory between its launches, beside inputs and outputs."""
    return sum(evaluate(space.numel, symbols) * dtype_of(space.dtype).itemsize for space in kernel.workspaces)


def most_workspace_bytes(region: Region, symbols: dict[str, int]) -> int:
    """What a kernel may take between its launches on a GPU, where models are as large as memory allows."""
    own = _bytes(region.inputs, symbols) + _bytes(region.output_specs, symbols)
    return max(int(_WORKSPACE_SHARE * own), _SPARE_BYTES)


def _compared(outputs: Iterable[TensorSpec], symbols: dict[str, int]) -> int:
    largest = max((evaluate(spec.numel, symbols) for spec in outputs), default=0)
    return _COMPARED_BYTES * largest + _BLOCK_DOUBLES * _DOUBLE_BYTES * min(largest, BLOCK_ELEMENTS)


def _peak(region: Region, size_of: Callable[[TensorSpec], int]) -> int:
    """The most that is held of the inputs and of what is computed from them, one node after the other."""
    sizes = {f"i{k}": size_of(spec) for k, spec in enumerate(region.inputs)}
    # By value, whose memory it is: views lie in that of what they are views of.
    owner = {name: name for name in sizes}
    last = last_uses(region)
    peak = sum(sizes.values())
    for position, node in enumerate(region.nodes):
        name = f"n{position}"
        source = next(references(node), None)
        if node.target in FREE and source is not None:
            owner[name] = owner[source]
        else:
            owner[name] = name
            sizes[name] = sum(map(size_of, node.specs))
        peak = max(peak, sum(sizes[one] for one in set(owner.values())))
        for old in last.get(position, ()):
            del owner[old]
    return peak


def _bytes(specs: Iterable[TensorSpec], symbols: dict[str, int]) -> int:
    return sum(spec.size_bytes(symbols) for spec in specs)


def _in_double(specs: Iterable[TensorSpec], symbols: dict[str, int]) -> int:
    """Floating values are widened, integers are not."""
    widths = ((spec, dtype_of(spec.dtype)) for spec in specs)
    return sum(
        spec.size_bytes(symbols) * (_DOUBLE_BYTES // dtype.itemsize if dtype.is_floating_point else 1)
        for spec, dtype in widths
    )
