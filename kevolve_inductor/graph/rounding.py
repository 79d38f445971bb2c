"""How far rounding alone may move a region's outputs.

One evaluation in a precision says little about what another order of the same operations would give: where eager was lucky
in an element, an equally good kernel is further off. So the region is evaluated in fp64 again and again with random
rounding errors put in wherever its own precision would round (Monte Carlo arithmetic: D. S. Parker, 1997; CESTAC: J. Vignes,
1993), and what is looked at is how much the outputs scatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .reference import (
    BITCASTS,
    EXACT_TARGETS,
    call_node,
    default_dtype,
    dtype_of,
    last_uses,
    references,
    resolve_target,
    widened,
)
from .region import Region, RegionNode
from .selection import is_selection

# Random numbers are drawn once and read from different places: more than any cycle of a kernel's tiles.
_POOL = 2**22
_SHIFTS = 2**16
# An operation rounds to nearest: its error is uniform within half a unit in the last place, about half of that in the mean.
_SHARE_OF_HALF_UNIT = 0.5
# A value this close to its dtype's largest, in units of the last place, may be rounded beyond it.
_UNITS_TO_OVERFLOW = 8
# The additions of a sum err together like its terms and its result with so many roundings each: a tree over blocks that
# are summed one after another, as kernels do it, with blocks of some forty terms.
_OF_A_SUM = 4.0
_POINTWISE_PRIMS = frozenset({"fma", "convert_element_type", "mul_rn", "div_rn"})


class RoundingSpread:
    """The outputs' scatter under random rounding, refined draw by draw. Keeps ``inputs``.

    Comparisons, indices and other results that are not floating keep their exact values: a kernel that decides otherwise
    than eager finds no pardon here. Raises ``ValueError`` for a region that selects, where another order means other
    choices, or that looks at a value's bits.
    """

    def __init__(self, region: Region, inputs: Sequence[torch.Tensor], seed: int) -> None:
        if any(is_selection(node.target) or node.target in BITCASTS for node in region.nodes):
            raise ValueError("a region in which rounding decides more than values")
        self._region = region
        self._symbols = {name: int(inputs[index].shape[dim]) for name, index, dim in region.symbols}
        self._inputs = {f"i{k}": tensor for k, tensor in enumerate(inputs)}
        self._device = inputs[0].device if inputs else torch.device("cpu")
        self._generator = torch.Generator().manual_seed(seed)
        on_device = torch.Generator(self._device).manual_seed(seed)
        size = _POOL + _SHIFTS
        self._pool = torch.randn(size, generator=on_device, device=self._device, dtype=torch.float64)
        self._kept: dict[str, Any] = {}
        self._last_uses = last_uses(region)
        self._exact = self._evaluate(noisy=False)
        self._squares = [torch.zeros_like(exact) for exact in self._exact]
        self._overflows: list[torch.Tensor] | None = None
        self.draws = 0

    @property
    def size_bytes(self) -> int:
        kept = (*self._inputs.values(), *self._exact, *self._squares, self._pool)
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    @torch.no_grad()
    def draw(self, count: int) -> None:
        """Evaluate ``count`` times more."""
        for _ in range(count):
            for squares, exact, noisy in zip(self._squares, self._exact, self._evaluate(noisy=True), strict=True):
                squares += (noisy - exact).square().nan_to_num_(0.0, 0.0, 0.0)
        self.draws += count

    def deviation(self, output: int) -> torch.Tensor:
        """Root mean square distance of one output to its exact value, element by element."""
        return (self._squares[output] / max(self.draws, 1)).sqrt()

    @torch.no_grad()
    def may_overflow(self, output: int) -> torch.Tensor:
        """Where one output is not finite once each value that its dtype barely holds, or does not hold, is infinite."""
        if self._overflows is None:
            self._overflows = [~values.isfinite() for values in self._evaluate(noisy=False, bounded=True)]
        return self._overflows[output]

    @torch.no_grad()
    def _evaluate(self, noisy: bool, bounded: bool = False) -> list[torch.Tensor]:
        values: dict[str, Any] = {name: widened(tensor) for name, tensor in self._inputs.items()}
        for position, node in enumerate(self._region.nodes):
            name = f"n{position}"
            values[name] = self._step(name, node, values, noisy)
            if bounded:
                values[name] = _bounded(values[name], node)
            for old in self._last_uses.get(position, ()):
                del values[old]
        outputs = [values[name] for name in self._region.outputs]
        return [output.double() for output in outputs]

    def _step(self, name: str, node: RegionNode, values: dict[str, Any], noisy: bool) -> Any:
        if name in self._kept:
            return self._kept[name]
        operands = {operand: values[operand] for operand in references(node)}
        of_sums = 0.0
        if noisy and not _is_exact(node) and not _is_pointwise(node):
            of_sums = _OF_A_SUM * max(_half_unit(spec.dtype, accumulated=True) for spec in node.specs)
            operands = {operand: self._disturbed(value, of_sums) for operand, value in operands.items()}
        with default_dtype(torch.float64):
            result = widened(call_node(node, operands, self._symbols, self._device, widen=True))
        if not any(dtype_of(spec.dtype).is_floating_point for spec in node.specs):
            self._kept[name] = result
            return result
        if not noisy or _is_exact(node):
            return result
        units = [max(_half_unit(spec.dtype), of_sums) for spec in node.specs]
        if isinstance(result, torch.Tensor):
            return self._disturbed(result, units[0])
        # What an operator was not asked for has no spec: a gradient of an input that needs none.
        left = iter(units)
        return tuple(part if part is None else self._disturbed(part, next(left)) for part in result)

    def _disturbed(self, value: Any, half_unit: float) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or half_unit == 0.0:
            return value
        value = value.clone()
        flat = value.as_strided((value.numel(),), (1,))
        for start in range(0, flat.numel(), _POOL):
            part = flat[start : start + _POOL]
            shift = int(torch.randint(_SHIFTS, (), generator=self._generator))
            part.addcmul_(part, self._pool[shift : shift + part.numel()], value=_SHARE_OF_HALF_UNIT * half_unit)
        return value


def _bounded(value: Any, node: RegionNode) -> Any:
    parts = [value] if isinstance(value, torch.Tensor) else list(value)
    specs = iter(node.specs)
    for place, part in enumerate(parts):
        dtype = dtype_of(next(specs).dtype) if part is not None else torch.bool
        if isinstance(part, torch.Tensor) and part.is_floating_point() and dtype.is_floating_point:
            limits = torch.finfo(dtype)
            beyond = part.abs() >= limits.max * (1.0 - _UNITS_TO_OVERFLOW * limits.eps)
            parts[place] = torch.where(beyond, part.sign() * float("inf"), part)
    return parts[0] if isinstance(value, torch.Tensor) else tuple(parts)


def _half_unit(dtype: str, accumulated: bool = False) -> float:
    """The largest relative error of one rounding. Sums of half-precision values are accumulated in single precision."""
    kind = dtype_of(dtype)
    if not kind.is_floating_point:
        return 0.0
    if accumulated and kind in (torch.float16, torch.bfloat16):
        kind = torch.float32
    return torch.finfo(kind).eps / 2


def _is_exact(node: RegionNode) -> bool:
    return node.target == "getitem" or node.target.split(".")[1] in EXACT_TARGETS


def _is_pointwise(node: RegionNode) -> bool:
    namespace, name = node.target.split(".")[:2]
    if namespace == "prims" and name in _POINTWISE_PRIMS:
        return True
    return torch.Tag.pointwise in getattr(resolve_target(node.target), "tags", ())
