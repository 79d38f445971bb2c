"""What probably made an output wrong: read off the wrong values, else off their pattern and the check that found them.

Only a sample of the wrong elements is looked at, so that the time does not depend on the output's size. A cause is a
hint for whoever writes the next candidate, never part of the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .evaluation import Pattern

_SAMPLE = 4096
_FEWEST = 4
_NEARLY_ALL = 0.95
# How exactly a value has to be its neighbour's or a multiple, at least: what float32 keeps after a few operations.
_SAME = 1e-4
_ROUNDINGS_APART = 4
_NO_SCALE = 2e-3
_ROUNDINGS: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Unit roundoffs are 2^-9 for bfloat16, and 2^-11 for TensorFloat-32 and float16; of sums and products of rounded numbers
# the median error is up to four times less.
_BFLOAT16_BITS, _TF32_BITS = 9, 11
_TYPICALLY_LESS = 2

_BY_CHECK: Mapping[str, str] = {
    "index out of range": "an index out of range is not reported where eager raises, or is reported where all are valid",
    "valid selection": "the chosen indices are not those of the wanted values: a wrong order, an index chosen twice, or "
    "the later of two equal values where the first is asked for",
    "guard bands": "a store without a mask or with a wrong bound writes beyond the output",
    "inputs unchanged": "a store goes to an input's memory",
    "as timed": "the result depends on what the output held before, or on an earlier call",
}
_BY_PATTERN: Mapping[Pattern, str] = {
    "unwritten": "these elements are never stored to: the grid or a loop ends too early, or a mask is too narrow",
    "not repeatable": "a race between blocks or threads, or a read of memory that was never written",
    "nan placement": "NaN is not passed on as eager does: a comparison, maximum or mask treats it differently",
    "everything": "the formula itself: a wrong operand, axis or order, or a reduction that leaves a part out",
    "one row": "one row is treated apart, such as the first or the last of a loop",
    "rows": "the rows' own offset, bound or running value",
    "one column": "one column is treated apart, such as the first or the last of a loop",
    "columns": "the offset or mask along the row",
    "whole tiles": "a tile's offset, its order in the grid, or a value carried from tile to tile",
    "tail": "the last partial block: its mask, its bound, or what masked-out elements are filled with",
    "every n-th": "one lane of a vector or one step of an unrolled loop",
    "scattered": "single values: a branch, a special value, a collision of writes, or too little precision",
}  # fmt: skip


def cause_of(check: str, pattern: Pattern) -> str | None:
    """What is probable where the values are not known."""
    return _BY_CHECK.get(check) or _BY_PATTERN.get(pattern)


@dataclass(frozen=True)
class WrongValues:
    """A sample of wrong elements: ``flat`` indices into ``exact``, what is there and what should be, as float64.

    Two values are the same where they differ by less than ``tolerance`` of their size.
    """

    flat: torch.Tensor
    found: torch.Tensor
    wanted: torch.Tensor
    exact: torch.Tensor
    tolerance: float

    def finite(self) -> WrongValues:
        kept = self.found.isfinite() & self.wanted.isfinite()
        return replace(self, flat=self.flat[kept], found=self.found[kept], wanted=self.wanted[kept])

    def are(self, wanted: torch.Tensor) -> bool:
        """Whether what is there is nearly everywhere ``wanted``."""
        scale = torch.maximum(wanted.abs(), wanted.abs().median())
        return _mostly((self.found - wanted).abs() <= self.tolerance * scale)


def cause_of_values(
    output: torch.Tensor, exact: torch.Tensor, wrong: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> str | None:
    """What the wrong values say, or ``None``. ``inputs`` are the region's own, some of which may be missing in a result."""
    flat = _sample(wrong)
    precision = torch.finfo(output.dtype).eps if output.is_floating_point() else 0.0
    tolerance = max(_SAME, _ROUNDINGS_APART * precision)
    values = WrongValues(flat, _at(output, flat).double(), _at(exact, flat).double(), exact, tolerance)
    not_finite = _not_finite(values)
    if not_finite is not None:
        return not_finite
    values = values.finite()
    if values.flat.numel() < _FEWEST:
        return None
    if values.are(values.wanted):
        return _rounded(values, output.dtype)
    readings: tuple[Callable[[], str | None], ...] = (
        lambda: _constant(values),
        lambda: _moved(values),
        lambda: _scaled(values, frozenset(size for tensor in inputs for size in tensor.shape)),
        lambda: _shifted(values),
        lambda: _left_out(values, inputs),
        lambda: _rounded(values, output.dtype),
    )
    return next((cause for reading in readings if (cause := reading()) is not None), None)


def _sample(wrong: torch.Tensor) -> torch.Tensor:
    """Flat indices of wrong elements, evenly spread."""
    line = wrong.reshape(-1)
    step = max(1, line.numel() // 2**20)
    places = line[::step].nonzero().reshape(-1) * step
    if places.numel() < _FEWEST:
        places = line.nonzero().reshape(-1)
    return places[:: max(1, places.numel() // _SAMPLE)]


def _at(tensor: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    return tensor[torch.unravel_index(flat, tensor.shape)] if tensor.dim() else tensor.reshape(-1)[flat]


def _not_finite(values: WrongValues) -> str | None:
    found, wanted = values.found, values.wanted
    if _mostly(found.isnan() & ~wanted.isnan()):
        if bool((found.isnan() & wanted.isinf()).any()):
            return "NaN where the reference is infinite: inf - inf or 0 * inf on the way"
        return "NaN where the reference is finite: 0/0, inf - inf, a root or logarithm of a negative, or an uninitialised read"
    if _mostly(wanted.isnan() & ~found.isnan()):
        return "a NaN of the inputs is lost: a maximum, comparison or clamp drops it"
    if _mostly(found.isinf() & wanted.isfinite()):
        return "infinite where the reference is finite: an overflow (exp without its maximum taken off?) or a division by 0"
    if _mostly(found.isfinite() & wanted.isinf()):
        return "finite where the reference is infinite: a clamp, or a mask's fill value instead of infinity"
    return None


def _constant(values: WrongValues) -> str | None:
    value = float(values.found[0])
    if not _mostly(values.found == value):
        return None
    if value == 0:
        return "wrong elements hold 0: a store or an accumulation is skipped, or an initial value is left"
    if _mostly(values.wanted == values.wanted[0]):
        return f"wrong elements all hold {value:.6g} where {float(values.wanted[0]):.6g} is wanted"
    return f"wrong elements all hold {value:.6g}: an initial or fill value, or one element spread over all"


def _moved(values: WrongValues) -> str | None:
    """Whether the values are right, but of other places."""
    shape = values.exact.shape
    if not shape:
        return None
    index = torch.unravel_index(values.flat, shape)
    for dim, offset in _offsets(shape):
        there = index[dim] + offset
        inside = (there >= 0) & (there < shape[dim])
        moved = tuple((there if k == dim else at)[inside] for k, at in enumerate(index))
        if int(inside.sum()) >= _FEWEST and replace(values, found=values.found[inside]).are(
            values.exact[moved].double()
        ):
            side = "after" if offset > 0 else "before"
            return (
                f"wrong elements hold the value {abs(offset)} {side} theirs along dimension {dim}: an offset is wrong"
            )
    return _exchanged(values)


def _exchanged(values: WrongValues) -> str | None:
    """Whether the memory holds the transposed result."""
    shape = values.exact.shape
    if len(shape) < 2:
        return None
    *batch, column, row = torch.unravel_index(values.flat, (*shape[:-2], shape[-1], shape[-2]))
    if values.are(values.exact[(*batch, row, column)].double()):
        return "wrong elements hold the transposed result's values: rows and columns are exchanged"
    return None


def _offsets(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """By one, and by the powers of two that blocks have."""
    for dim in reversed(range(len(shape))):
        for power in range((shape[dim] - 1).bit_length()):
            yield dim, 2**power
            yield dim, -(2**power)


def _scaled(values: WrongValues, sizes: frozenset[int]) -> str | None:
    usable = values.wanted != 0
    if int(usable.sum()) < _FEWEST:
        return None
    ratio = float((values.found[usable] / values.wanted[usable]).median())
    # A ratio of nearly 1 is a small error, not a scale.
    if ratio == 0 or abs(ratio - 1) < _NO_SCALE or not values.are(ratio * values.wanted):
        return None
    if abs(ratio + 1) < values.tolerance:
        return "wrong elements have the opposite sign"
    meaning = _meaning(ratio, sizes, values.tolerance)
    return f"wrong elements are {ratio:.6g} times the reference{meaning}: a scale is missing, or applied twice"


def _meaning(ratio: float, sizes: frozenset[int], tolerance: float) -> str:
    for size in sorted(sizes - {0, 1}):
        factors = {f"{size}": size, f"√{size}": math.sqrt(size), f"{size}/{size - 1}": size / (size - 1)}
        inverse = {f"1/{size}": 1 / size, f"1/√{size}": 1 / math.sqrt(size), f"{size - 1}/{size}": (size - 1) / size}
        for text, factor in (factors | inverse).items():
            if abs(ratio / factor - 1) < tolerance:
                return f" ({text}, where {size} is a size of the inputs)"
    return ""


def _shifted(values: WrongValues) -> str | None:
    shift = float((values.found - values.wanted).median())
    if shift == 0 or not values.are(values.wanted + shift):
        return None
    return f"wrong elements are off by {shift:+.6g}: an offset or a bias is missing, or applied twice"


def _left_out(values: WrongValues, inputs: Sequence[torch.Tensor]) -> str | None:
    """Whether an input, repeated to the output's shape, is all that lies between what is there and what should be."""
    for number, tensor in enumerate(inputs):
        # Alignment begins at the last dimension, as in operators.
        trailing = zip(reversed(tensor.shape), reversed(values.exact.shape), strict=False)
        if tensor.dim() > values.exact.dim() or any(own not in (1, size) for own, size in trailing):
            continue
        operand = _at(tensor.broadcast_to(values.exact.shape), values.flat).double()
        readings = {
            "hold its values, as if nothing were done to them": operand,
            "miss it as a summand": values.wanted - operand,
            "have it as a summand once too often": values.wanted + operand,
            "miss it as a factor": values.wanted / operand,
            "have it as a factor once too often": values.wanted * operand,
        }
        for words, wanted in readings.items():
            if bool(wanted.isfinite().all()) and values.are(wanted):
                return f"input {number}: wrong elements {words}"
    return None


def _rounded(values: WrongValues, dtype: torch.dtype) -> str | None:
    """Whether the errors are those of a narrower type."""
    if not dtype.is_floating_point:
        return None
    scale = values.wanted.abs().median()
    error = float(((values.found - values.wanted).abs() / torch.maximum(values.wanted.abs(), scale)).median())
    if not 0 < error < _ROUNDINGS_APART * max(2.0**-_BFLOAT16_BITS, torch.finfo(dtype).eps):
        return None
    for name, narrow in _ROUNDINGS.items():
        if dtype.itemsize > narrow.itemsize and _mostly(values.found.to(narrow).double() == values.found):
            return f"every wrong element is a {name} number: the result is rounded to {name} before it is stored"
    bits = -math.log2(error)
    if dtype.itemsize < torch.float32.itemsize:
        return (
            f"errors of about 2^-{bits:.0f} of the values: intermediate results are rounded where eager keeps float32"
        )
    for most, how in ((_BFLOAT16_BITS, "bfloat16"), (_TF32_BITS, "TF32 or float16")):
        if bits < most + _TYPICALLY_LESS:
            return f"errors of about 2^-{bits:.0f} of the values: as if operands were rounded to {how}, or a coarse approximation"
    return (
        f"errors of about 2^-{bits:.0f} of the values: too much is lost in a long sum or a difference of large values"
    )


def _mostly(holds: torch.Tensor) -> bool:
    return holds.numel() > 0 and float(holds.double().mean()) >= _NEARLY_ALL
