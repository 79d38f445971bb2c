"""Inputs regenerated from a region, a workload and a seed: the same tensors in every process that asks.

Inputs have names: a distribution (``"normal"``), the same with another seed (``"normal#2"``), or with other sizes for the
region's symbols in order (``"normal@127"``, ``"normal@127,64"``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..graph.dims import evaluate
from ..graph.reference import dtype_of
from ..graph.region import InputRange, Region, TensorSpec, Workload

# What each distribution is for:
#   normal, uniform   the ordinary case; uniform inputs also start at an odd address
#   large             overflow and cancellation; for integers the ends of the range
#   zeros, constant   division by zero, one value in a whole row
#   ties, sorted      selections, binary searches, run lengths
#   special           NaN, infinities, negative zero, subnormal numbers
#   beyond, below     indices just out of range: wherever eager raises, a kernel must
#   far               an index far out of range: reading there ends the process
#   fenced            ordinary values between pages that must not be touched: a read beyond them ends the process
#   broken            offsets that fall and that lead beyond the end, fenced: whatever comes out, nothing may be harmed
FENCED, BROKEN = "fenced", "broken"
OUT_OF_RANGE = ("beyond", "below", "far")
DISTRIBUTIONS = (
    "normal",
    "uniform",
    "large",
    "zeros",
    "constant",
    "ties",
    "sorted",
    "special",
    FENCED,
    BROKEN,
    *OUT_OF_RANGE,
)
LEAST_INPUTS = 32
# What candidates are timed on in turn, and judged on once more after that; large ones leave no room for a second.
_TIMED = ("normal#0", "normal#00")
_ROTATED_BYTES = 2**28
_WITHOUT_SEED = ("zeros", "constant")
_SIZES = (2, 3, 7, 16, 31, 127, 128, 129, 251)
_REDUCED = ("normal", "large", "ties", "special", FENCED, BROKEN, *OUT_OF_RANGE)
_REDUCED_FROM_BYTES = 128 * 2**20
_SCREEN = ("normal", "ties")
# A graph as it is really run: weights of a size that keeps deep networks finite.
GRAPH = "graph"

# Which argument of a binary search holds the borders, and what may stand between them and an input.
_BORDERS = {"aten.bucketize.Tensor": 1, "aten.searchsorted.Tensor": 0}
_PASSES_ORDER = ("aten.select.int", "aten.slice.Tensor", "aten.view.default", "aten.reshape.default",
                 "aten.clone.default", "aten.squeeze.dim", "prims.convert_element_type.default")  # fmt: skip

_PLAIN_INTEGERS = InputRange(-100, 100)
# Of a whole graph's integers it is not known which are indices: these are in range nearly everywhere.
_ANY_INDEX = InputRange(0, 1)
_SPECIAL_FACTORS = (float("nan"), float("inf"), float("-inf"), -0.0)
_SPECIAL_VALUES = (*_SPECIAL_FACTORS, 1e-40)
_RAGGED_SHARE = 64
_PRODUCTS = ("aten.cumprod.default", "aten.prod.default", "aten.prod.dim_int")
# So many standard deviations of the logarithm of a whole axis' product lie within what the dtype holds.
_DEVIATIONS_OF_PRODUCTS = 6.0
_HUGE_SHARE = 1 / 16
# Elements: more than any tensor has, and in bytes still no address that wraps around.
_FAR = 2**40


# Operators that are given where a pooling found its maxima: that argument's position, those of the kernel's size, stride,
# padding and dilation, and whether places are indices into a flattened plane.
_PLACES = {
    "prims._low_memory_max_pool_offsets_to_indices.default": (0, 1, 3, 4, 5, False),
    "aten.max_pool2d_with_indices_backward.default": (7, 2, 3, 4, 5, True),
    "aten.max_pool3d_with_indices_backward.default": (7, 2, 3, 4, 5, True),
}
# Operators whose indices eager does not check on a CPU: out of range, it may end the process.
_UNCHECKED = {"aten._embedding_bag_backward.default", "aten._embedding_bag_dense_backward.default"}


@dataclass(frozen=True)
class _Recipe:
    """How one input is filled. ``factors``: up to so many of its values may be multiplied with each other."""

    distribution: str
    position: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    allowed: InputRange | None
    generator: torch.Generator
    device: torch.device
    factors: int = 0


def distributions_for(region: Region, workload: Workload) -> tuple[str, ...]:
    """The distributions that say something about this region, in the order to try them."""
    size = sum(spec.size_bytes(workload.symbols) for spec in (*region.inputs, *region.output_specs))
    names: tuple[str, ...] = _REDUCED if size > _REDUCED_FROM_BYTES else DISTRIBUTIONS
    dtypes = [dtype_of(spec.dtype) for spec in region.inputs]
    if not any(dtype.is_floating_point for dtype in dtypes):
        names = tuple(name for name in names if name not in ("uniform", "special"))
    if region.device != "cpu":
        # A GPU has no pages to forbid that are small enough; its sanitizer looks after this.
        names = tuple(name for name in names if name not in (FENCED, BROKEN))
    if not any(allowed is not None and allowed.monotone for allowed in workload.ranges):
        names = tuple(name for name in names if name != BROKEN)
    if region.device != "cpu" or not any(_may_leave(entry) for entry in workload.ranges):
        # On a GPU eager's own check aborts the whole process, so nothing can be compared there.
        names = tuple(name for name in names if name not in OUT_OF_RANGE)
    return names


def is_judged(region: Region, distribution: str) -> bool:
    """Whether eager has a result for such inputs; else a kernel must only do no harm."""
    if distribution in OUT_OF_RANGE:
        return not any(node.target in _UNCHECKED for node in region.nodes)
    return distribution != BROKEN


def at_other_sizes(region: Region, workload: Workload) -> tuple[str, ...]:
    """Names of inputs whose sizes lie around where kernels that take sizes go wrong: a vector's, a block's and their own.

    Sizes 0 and 1 are left out, since graphs with them are compiled for themselves.
    """
    if not region.symbols:
        return ()
    hints = [workload.symbols[name] for name in region.symbol_names]
    near = [[max(2, hint + step) for hint in hints] for step in (-1, 1)]
    alike = [[size] * len(hints) for size in _SIZES]
    apart = [[size + position for position in range(len(hints))] for size in _SIZES[:4]] if len(hints) > 1 else []
    return tuple(f"normal@{','.join(map(str, sizes))}" for sizes in (*alike, *apart, *near))


def timed_inputs(region: Region, workload: Workload) -> tuple[str, ...]:
    """Names of the inputs that candidates and baselines are timed on, in turn."""
    size = sum(spec.size_bytes(workload.symbols) for spec in region.inputs)
    return _TIMED if size <= _ROTATED_BYTES else _TIMED[:1]


def with_other_seeds(distributions: tuple[str, ...]) -> tuple[str, ...]:
    """As many more inputs as make ``LEAST_INPUTS`` together with ``distributions``, the random ones in turn."""
    random = [name for name in distributions if name not in (*_WITHOUT_SEED, BROKEN, *OUT_OF_RANGE)]
    more = max(0, LEAST_INPUTS - len(distributions))
    return tuple(f"{random[k % len(random)]}#{1 + k // len(random)}" for k in range(more)) if random else ()


def named(name: str, workload: Workload) -> tuple[str, Workload]:
    """The distribution and the workload of inputs called ``name``. Raises ``ValueError`` for sizes that do not fit."""
    rest, _, sizes = name.partition("@")
    distribution = rest.partition("#")[0]
    if not sizes:
        return distribution, workload
    new = tuple((symbol, int(size)) for (symbol, _), size in zip(workload.sizes, sizes.split(","), strict=True))
    moved = {old: size for (_, old), (_, size) in zip(workload.sizes, new, strict=True)}
    return distribution, replace(workload, sizes=new, ranges=tuple(_resized(r, moved) for r in workload.ranges))


def _resized(allowed: InputRange | None, moved: Mapping[int, int]) -> InputRange | None:
    """An index ends where the axis does that it points into: with the axis, its range ends elsewhere."""
    if allowed is None:
        return None
    for end in (0, 1):
        if allowed.high + end in moved:
            high = moved[allowed.high + end] - end
            return replace(allowed, low=max(min(allowed.low, high), -high - 1), high=high)
    return allowed


def screened(distributions: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that a kernel is checked on before it is timed, and the rest: what is wrong mostly fails on few inputs."""
    first = tuple(name for name in distributions if name in _SCREEN)
    return first, tuple(name for name in distributions if name not in first)


def generate(
    region: Region, workload: Workload, distribution: str, seed: int, device: torch.device
) -> list[torch.Tensor]:
    """One tensor per input of the inputs called ``distribution``, with the region's strides, within the ranges."""
    name = distribution
    distribution, workload = named(name, workload)
    tensors = []
    ascending, maxima = _ascending_inputs(region), _places_of_maxima(region, workload.symbols)
    factors = _most_factors(region, workload.symbols)
    for position, spec in enumerate(region.inputs):
        allowed = workload.ranges[position] if position < len(workload.ranges) else None
        shape, stride = sizes_of(spec, workload.symbols)
        generator = torch.Generator(device=device).manual_seed(_seed(seed, workload.seed, name, position))
        distinct = tuple(1 if step == 0 else size for size, step in zip(shape, stride, strict=True))
        recipe = _Recipe(distribution, position, distinct, dtype_of(spec.dtype), allowed, generator, device, factors)
        shift = 1 if distribution == "uniform" and device.type == "cpu" else 0
        values = maxima[position].places(recipe) if position in maxima else _values(recipe)
        if position in ascending and distribution != BROKEN:
            values = _sorted(values.nan_to_num(0.0) if values.is_floating_point() else values, False)
        tensors.append(_placed(values, shape, stride, shift))
    return tensors


def _ascending_inputs(region: Region) -> frozenset[int]:
    """Inputs that reach a binary search as its borders, perhaps through a view: it needs them in ascending order."""
    found: set[int] = set()
    for node in region.nodes:
        if node.target in _BORDERS:
            name = node.args[_BORDERS[node.target]].get("node", "")
            while name.startswith("n"):
                source = region.nodes[int(name[1:])]
                first = source.args[0] if source.args else None
                name = first.get("node", "") if isinstance(first, dict) and source.target in _PASSES_ORDER else ""
            if name:
                found.add(int(name[1:]))
    return frozenset(found)


def _most_factors(region: Region, symbols: dict[str, int]) -> int:
    """The longest axis that a product may run along; 0 without products."""
    found = [0]
    for node in region.nodes:
        if node.target in _PRODUCTS:
            shape, _ = sizes_of(region.spec(node.args[0]["node"]), symbols)
            found.append(math.prod(shape) if len(node.args) == 1 else max(shape, default=1))
    return max(found)


@dataclass(frozen=True)
class _Maxima:
    """Where maxima of windows were found: as ``flat`` indices into a plane of ``sizes``, else as numbers of taps."""

    taps: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    flat: bool

    def places(self, recipe: _Recipe) -> torch.Tensor:
        """Any tap of each window that is inside of the plane: no others are ever found."""
        rank, found = len(self.taps), torch.zeros(recipe.shape, dtype=torch.int64, device=recipe.device)
        for d, (taps, size) in enumerate(zip(self.taps, self.sizes, strict=True)):
            axis = len(recipe.shape) - rank + d
            across = [-1 if k == axis else 1 for k in range(len(recipe.shape))]
            start = torch.arange(recipe.shape[axis], device=recipe.device) * self.strides[d] - self.padding[d]
            first = (-start).clamp(min=0).add(self.dilation[d] - 1).div(self.dilation[d], rounding_mode="floor")
            last = (size - 1 - start).div(self.dilation[d], rounding_mode="floor").clamp(max=taps - 1)
            tap = _between(recipe, 0, taps - 1).clamp(first.view(across), last.view(across))
            here = start.view(across) + tap * self.dilation[d] if self.flat else tap
            found = found * (size if self.flat else taps) + here
        return found.to(recipe.dtype)


def _places_of_maxima(region: Region, symbols: dict[str, int]) -> dict[int, _Maxima]:
    """Inputs from which a pooling's gradient knows where the maxima were."""
    found: dict[int, _Maxima] = {}
    for node in region.nodes:
        if node.target not in _PLACES:
            continue
        at, kernel, stride, padding, dilation, is_flat = _PLACES[node.target]
        name = node.args[at].get("node", "")
        if not name.startswith("i"):
            continue
        numbers = [tuple(node.args[which]) for which in (kernel, stride, padding, dilation)]
        rank = len(numbers[0])
        taps, strides, pads, apart = (values * rank if len(values) == 1 else values for values in numbers)
        if is_flat:
            sizes = sizes_of(region.spec(node.args[1]["node"]), symbols)[0][-rank:]
        else:
            sizes = tuple(node.args[2])
        found[int(name[1:])] = _Maxima(taps, sizes, strides or taps, pads, apart, is_flat)
    return found


def extent_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last one that a tensor touches."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def sizes_of(spec: TensorSpec, symbols: dict[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides with every symbol replaced by its size."""
    shape = tuple(evaluate(dim, symbols) for dim in spec.shape)
    return shape, tuple(evaluate(dim, symbols) for dim in spec.stride)


def _placed(values: torch.Tensor, shape: tuple[int, ...], stride: tuple[int, ...], shift: int) -> torch.Tensor:
    memory = torch.zeros(extent_of(shape, stride) + shift, dtype=values.dtype, device=values.device)
    memory.as_strided(values.shape, stride, shift).copy_(values)
    return memory.as_strided(shape, stride, shift)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")


def _may_leave(allowed: InputRange | None) -> bool:
    return allowed is not None and not allowed.monotone


def _values(recipe: _Recipe) -> torch.Tensor:
    if recipe.dtype is torch.bool:
        return _booleans(recipe)
    if recipe.dtype.is_floating_point:
        return _floats(recipe).to(recipe.dtype)
    if recipe.allowed is not None and recipe.allowed.monotone:
        return _offsets(recipe, recipe.allowed).to(recipe.dtype)
    return _integers(recipe)


def _uniform(recipe: _Recipe) -> torch.Tensor:
    return torch.rand(recipe.shape, generator=recipe.generator, device=recipe.device, dtype=torch.float32)


def _normal(recipe: _Recipe) -> torch.Tensor:
    return torch.randn(recipe.shape, generator=recipe.generator, device=recipe.device, dtype=torch.float32)


def _sorted(values: torch.Tensor, descending: bool) -> torch.Tensor:
    return values.sort(-1, descending=descending).values if values.dim() else values


def _booleans(recipe: _Recipe) -> torch.Tensor:
    if recipe.distribution in ("zeros", "constant"):
        value = recipe.distribution == "constant"
        return torch.full(recipe.shape, value, device=recipe.device)
    values = _uniform(recipe) < (0.05 if recipe.distribution == "ties" else 0.5)
    if recipe.distribution == "sorted":
        return _sorted(values.to(torch.uint8), recipe.position % 2 == 1).to(torch.bool)
    return values


def _floats(recipe: _Recipe) -> torch.Tensor:
    match recipe.distribution:
        case "uniform":
            return _uniform(recipe)
        case "large" | "special" if recipe.factors:
            # Which part of a product overflows or vanishes depends on the order: here no order leaves the range.
            factors = _factors(recipe)
            return factors if recipe.distribution == "large" else _sprinkled(recipe, factors, _SPECIAL_FACTORS)
        case "large":
            values = _normal(recipe) * (64.0 if recipe.dtype is torch.float16 else 1000.0)
            if recipe.dtype is torch.float16:
                return values
            # Some are beyond what half precision holds: where it is used on the way, that must show.
            return torch.where(_uniform(recipe) < _HUGE_SHARE, 100.0 * values, values)
        case "zeros":
            return torch.zeros(recipe.shape, device=recipe.device)
        case "constant":
            return torch.full(recipe.shape, 0.75, device=recipe.device)
        case "ties":
            return torch.floor(_uniform(recipe) * 8.0) / 2.0 - 2.0
        case "sorted":
            return _sorted(_normal(recipe), recipe.position % 2 == 1)
        case "special":
            return _sprinkled(recipe, _normal(recipe), _SPECIAL_VALUES)
        case "graph":
            if len(recipe.shape) < 2:
                return _uniform(recipe) + 0.5
            return _normal(recipe) / max(recipe.shape[-1], 1) ** 0.5
    return _normal(recipe)


def _factors(recipe: _Recipe) -> torch.Tensor:
    """Of both signs, and as far from 1 as ``recipe.factors`` of them may be."""
    deviation = math.log(torch.finfo(recipe.dtype).max) / (_DEVIATIONS_OF_PRODUCTS * recipe.factors**0.5)
    return torch.where(_uniform(recipe) < 0.5, -1.0, 1.0) * torch.exp(deviation * _normal(recipe))


def _sprinkled(recipe: _Recipe, values: torch.Tensor, special: Sequence[float]) -> torch.Tensor:
    flat = values.reshape(-1)
    count = flat.numel()
    if count:
        for value in special:
            places = max(1, count // 1000)
            at = torch.randint(count, (places,), generator=recipe.generator, device=recipe.device)
            flat[at] = value
    return flat.reshape(values.shape)


def _integers(recipe: _Recipe) -> torch.Tensor:
    limits = torch.iinfo(recipe.dtype)
    allowed = recipe.allowed or (_ANY_INDEX if recipe.distribution == GRAPH else _PLAIN_INTEGERS)
    if recipe.allowed is None and recipe.distribution == "large":
        allowed = InputRange(limits.min, limits.max)
    low, high = max(allowed.low, limits.min), min(allowed.high, limits.max)
    match recipe.distribution:
        case "zeros":
            values = torch.full(recipe.shape, low if low > 0 or high < 0 else 0, device=recipe.device)
        case "constant":
            values = torch.full(recipe.shape, high, device=recipe.device)
        case "ties":
            few = torch.tensor([low, low + (high - low) // 2, high], device=recipe.device)
            values = few[_between(recipe, 0, 2)]
        case "sorted":
            values = _sorted(_between(recipe, low, high), recipe.position % 2 == 1)
        case "large":
            ends = torch.tensor([low, high], device=recipe.device)
            values = torch.where(_uniform(recipe) < 0.5, ends[_between(recipe, 0, 1)], _between(recipe, low, high))
        case "beyond" | "below" | "far" if _may_leave(recipe.allowed):
            values = _between(recipe, low, high)
            outside = {"beyond": high + 1, "below": low - 1}.get(recipe.distribution, min(high + _FAR, limits.max))
            if values.numel() and limits.min <= outside <= limits.max:
                values.reshape(-1)[values.numel() // 2] = outside
        case _:
            values = _between(recipe, low, high)
    return values.to(recipe.dtype)


def _between(recipe: _Recipe, low: int, high: int) -> torch.Tensor:
    """Uniform 64-bit integers of ``[low, high]``."""
    # torch.randint excludes the upper end, which must itself be an int64.
    top = min(high, torch.iinfo(torch.int64).max - 1)
    return torch.randint(low, top + 1, recipe.shape, generator=recipe.generator, device=recipe.device)


def _offsets(recipe: _Recipe, allowed: InputRange) -> torch.Tensor:
    """Non-decreasing along the last dimension, from ``low`` to ``high``; segments differ by distribution."""
    low, high = allowed.low, allowed.high
    share = _uniform(recipe).double()
    match recipe.distribution:
        case "zeros":
            share = torch.zeros_like(share)
        case "constant":
            share = torch.ones_like(share)
        case "ties":
            share = torch.floor(share * 8.0) / 8.0
        case "large":
            share = share**_RAGGED_SHARE
        case "uniform" if recipe.shape:
            share = torch.linspace(0, 1, recipe.shape[-1], device=recipe.device, dtype=torch.float64).expand(
                recipe.shape
            )
    values = _sorted((share * (high - low) + low).to(torch.int64), False).clone()
    if recipe.shape and recipe.shape[-1] > 0:
        values[..., 0] = low
        values[..., -1] = high
    return _broken(values, high) if recipe.distribution == BROKEN else values


def _broken(offsets: torch.Tensor, high: int) -> torch.Tensor:
    """One falls, one lies before the first element, and one beyond the last."""
    places = [offsets.shape[-1] * k // 4 for k in (1, 2, 3)] if offsets.dim() else []
    for place, value in zip(places, (0, -3, high + _RAGGED_SHARE), strict=False):
        offsets[..., place] = value
    return offsets
