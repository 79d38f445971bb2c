"""What Triton emitters of several families share: grids, coordinates, and reads under the masks of a tile's axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ...graph.dims import Dim
from ...graph.region import TensorSpec
from ..expression import TritonPrinter
from ..expression import expression as ex
from ..expression.expression import Expr
from ..expression.remainder import triton_remainder
from ..expression.triton import TRITON_TYPES

INT32 = 2**31
# Kernels that read less leave some of it in the second-level cache, where another kernel may find it.
_LEAST_PASSED_BY = 2**26
# A further argument of a load: caches give up first what it brings.
EVICT_FIRST = ", eviction_policy='evict_first'"


# The last block of a grid reaches beyond the last element, and its numbers must not wrap around either.
_LARGEST_BLOCK = 2**20


def needs_64_bits(specs: Sequence[TensorSpec]) -> bool:
    """Whether 32-bit numbers may be too small for the elements of a tensor, or for how far its strides reach."""
    return any(_reach(spec) >= INT32 - _LARGEST_BLOCK for spec in specs)


def _reach(spec: TensorSpec) -> int:
    """Offsets that kernels of a tensor compute with; more than any number of 32 bits where a size is not known."""
    if not all(isinstance(dim, int) for dim in (*spec.shape, *spec.stride)):
        return INT32
    steps = [(int(size), int(step)) for size, step in zip(spec.shape, spec.stride, strict=True)]
    return max(math.prod(size for size, _ in steps), 1 + sum((size - 1) * step for size, step in steps))


def passes_caches_by(read_bytes: int) -> bool:
    """Is what a kernel reads once gone from the second-level cache anyway when it ends? Then it had better leave first."""
    return read_bytes >= _LEAST_PASSED_BY


def next_power_of_2(size: int) -> int:
    """The least power of two that is not below ``size``."""
    return 1 << (max(size, 1) - 1).bit_length()


def cdiv(numel: Dim, by: int) -> Dim:
    """How many blocks of ``by`` elements hold ``numel``."""
    return -(-numel // by) if isinstance(numel, int) else f"cdiv({numel}, {by})"


def coordinates(rest: str, axes: Sequence[tuple[str, Dim]]) -> list[str]:
    """Coordinates of a flat place: the last axis varies fastest, the first takes what is left."""
    lines = []
    for name, extent in reversed(axes[1:]):
        lines.append(f"{name} = {rest} % {extent}")
        rest = f"({rest} // {extent})"
    return [*lines, f"{axes[0][0]} = {rest}"] if axes else lines


class TilePrinter(TritonPrinter):
    """Prints flat reads over a tile whose axes are rows, positions and inner elements.

    ``masks`` gives the mask of each variable that is an axis. ``guards`` are conditions outside which a read is discarded.
    """

    def __init__(self, masks: Mapping[str, str], guards: Mapping[Expr, tuple[Expr, bool]], prefix: str = "t") -> None:
        super().__init__((), "mask", prefix)
        self.masks, self.guards = masks, guards

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {**super().specials(), "read": self._read, "quick_mod": triton_remainder}

    def _read(self, expr: Expr, arguments: list[str]) -> str:
        slot, stored = expr.value
        masks = self._masks_of(expr.args[0])
        condition, holds = self.guards.get(expr, (None, True))
        # A mask has no more axes than what it masks.
        if condition is not None and ex.variables(condition) <= ex.variables(expr.args[0]):
            masks.append(self.value(condition) if holds else f"({self.value(condition)} == 0)")
        masked = f", mask={' & '.join(masks)}, other=0" if masks else ""
        text = f"tl.load(in{slot} + {arguments[0]}{masked}{self.hint(expr)})"
        if stored == "bool":
            return f"({text} != 0)"
        return text if stored == expr.dtype else f"{text}.to({TRITON_TYPES[expr.dtype]})"

    def hint(self, read: Expr) -> str:
        """What a read says to caches, as a further argument."""
        return ""

    def _masks_of(self, expr: Expr) -> list[str]:
        return sorted({self.masks[name] for name in ex.variables(expr) if name in self.masks})

    def _check_index(self, expr: Expr, arguments: list[str]) -> str:
        extent, wrap = expr.value
        at = f"tl.where({arguments[0]} < 0, {arguments[0]} + {extent}, {arguments[0]})" if wrap else arguments[0]
        name = f"{self._prefix}i{self._count}"
        self._count += 1
        outside = "".join(f" | ~({mask})" for mask in self._masks_of(expr))
        self.lines.append(f"{name} = {at}")
        self.lines.append(f'tl.device_assert((({name} >= 0) & ({name} < {extent})){outside}, "index out of range")')
        return name


def indented(lines: Sequence[str], by: str = "    ") -> list[str]:
    return [f"{by}{line}" for line in lines]
