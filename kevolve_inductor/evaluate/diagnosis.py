"""Why a kernel is as fast as it is: its traffic and arithmetic against the target's measured ceilings."""

from __future__ import annotations

import math
from dataclasses import replace

from ..graph.dims import evaluate
from ..graph.reference import references
from ..graph.region import Region, RegionNode
from ..platforms.executor import Resources
from ..platforms.platform import Ceilings
from ..platforms.profile import Profile
from .evaluation import Diagnosis, Limiter

# Operators that read only some of their first operand, so its size says nothing about the traffic.
_PARTIAL_READS = frozenset(
    "slice select narrow index _unsafe_index index_select gather embedding as_strided split split_with_sizes unbind "
    "diagonal topk masked_select take take_along_dim _embedding_bag _embedding_bag_forward_only bucketize searchsorted "
    "constant_pad_nd where masked_fill avg_pool2d_backward avg_pool3d_backward".split()
)
_VIEWS = frozenset(
    "view reshape _unsafe_view permute transpose t expand unsqueeze squeeze clone alias _to_copy convert_element_type".split()
)
_MATRIX_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "convolution"})
_BOUND_SHARE = 0.5
_LAUNCHES = 4.0
# With fewer warps than this share of the possible, one warp's waiting is no longer hidden behind the others' work.
_LOW_OCCUPANCY = 0.25
_BOUND_BY_COUNTERS = 0.6
_IDLE_SHARE = 0.25
_LOW_EFFICIENCY = 0.7


def least_bytes(region: Region, symbols: dict[str, int]) -> int:
    """Bytes that any kernel must move: every output, and every input known to be read completely."""
    whole = {name for name in _read_whole(region) if name[0] == "i"}
    specs = [region.spec(name) for name in whole] + list(region.output_specs)
    return sum(spec.size_bytes(symbols) for spec in specs)


def _read_whole(region: Region) -> set[str]:
    whole = set(region.outputs)
    for position in reversed(range(len(region.nodes))):
        node = region.nodes[position]
        name = _operator(node)
        if node.target == "getitem" or name in _VIEWS:
            # A view reads what is read of it.
            if f"n{position}" in whole:
                whole |= set(references(node))
        elif name in _PARTIAL_READS:
            whole |= _indices(node)
        else:
            whole |= set(references(node))
    return whole


def _indices(node: RegionNode) -> set[str]:
    """Of an operator that reads parts: its index tensors, which it reads completely."""
    names = list(references(node))
    if _operator(node) in ("avg_pool2d_backward", "avg_pool3d_backward"):
        # The gradient comes first; of what was averaged only the shape matters.
        return set(names[:1])
    if _operator(node) in ("gather", "embedding", "index_select", "bucketize", "searchsorted"):
        return set(names[:1] if _operator(node) == "bucketize" else names[1:])
    return set()


def _operator(node: RegionNode) -> str:
    return node.target.split(".")[1] if "." in node.target else node.target


def flops_of(region: Region, symbols: dict[str, int]) -> float:
    """Arithmetic of the region: two per multiply-add of a matrix product, one per element of any other floating result."""
    total = 0.0
    for node in region.nodes:
        name = _operator(node)
        if node.target == "getitem" or name in _VIEWS or not node.specs:
            continue
        size = math.prod(evaluate(dim, symbols) for dim in node.specs[0].shape)
        if name in _MATRIX_PRODUCTS:
            total += 2.0 * size * _inner(region, node, symbols)
        elif "float" in node.specs[0].dtype:
            total += max(size, _largest_operand(region, node, symbols))
    return total


def _inner(region: Region, node: RegionNode, symbols: dict[str, int]) -> int:
    operands = [region.spec(name) for name in references(node)]
    left = operands[1] if _operator(node) in ("addmm", "baddbmm") else operands[0]
    if _operator(node) == "convolution":
        return math.prod(evaluate(dim, symbols) for dim in operands[1].shape[1:])
    return evaluate(left.shape[-1], symbols)


def _largest_operand(region: Region, node: RegionNode, symbols: dict[str, int]) -> int:
    sizes = (math.prod(evaluate(d, symbols) for d in region.spec(name).shape) for name in references(node))
    return max(sizes, default=0)


def diagnose(
    region: Region, symbols: dict[str, int], latency_us: float, ceilings: Ceilings, resources: Resources
) -> Diagnosis:
    """What the time alone says, with the bytes and operations that the region needs at least, and the compiler's report."""
    seconds = latency_us / 1e6
    bytes_per_s = least_bytes(region, symbols) / seconds
    flops_per_s = flops_of(region, symbols) / seconds
    memory = bytes_per_s / ceilings.bytes_per_s
    compute = flops_per_s / _peak_flops(region, ceilings)
    return Diagnosis(
        limiter=_limiter(memory, compute, seconds, ceilings, resources),
        source="measured time" if resources == Resources() else "measured time, compiler's report",
        achieved_bytes_per_s=bytes_per_s,
        achieved_flops_per_s=flops_per_s,
        ceiling_share=max(memory, compute),
        registers=resources.registers,
        spills=resources.spills,
        shared_bytes=resources.shared_bytes,
        occupancy=None if resources.occupancy is None else resources.occupancy.share,
        occupancy_limit=None if resources.occupancy is None else resources.occupancy.limit,
    )


def with_profile(diagnosis: Diagnosis, profile: Profile) -> Diagnosis:
    """What a closer look adds; where it measured what the diagnosis could only infer, it also decides the limiter."""
    sources = dict.fromkeys((*diagnosis.source.split(", "), *profile.sources.values()))
    limiter = _limiter_seen(diagnosis, profile)
    return replace(diagnosis, limiter=limiter, source=", ".join(sources), profile=profile)


def _limiter_seen(diagnosis: Diagnosis, profile: Profile) -> Limiter:
    memory, compute = profile.memory_share or 0.0, profile.compute_share or 0.0
    if max(memory, compute) >= _BOUND_BY_COUNTERS:
        return "memory" if memory >= compute else "compute"
    # Threads that wait for memory together gain nothing from each other either, and a few microseconds cannot be shared.
    if diagnosis.limiter in ("memory", "compute", "launch"):
        return diagnosis.limiter
    if (profile.idle_share or 0.0) >= _IDLE_SHARE or (profile.parallel_efficiency or 1.0) < _LOW_EFFICIENCY:
        return "load imbalance"
    if profile.occupancy is None or diagnosis.spills:
        return diagnosis.limiter
    return "occupancy" if profile.occupancy < _LOW_OCCUPANCY else "latency"


def _peak_flops(region: Region, ceilings: Ceilings) -> float:
    dtypes = {node.specs[0].dtype for node in region.nodes if _operator(node) in _MATRIX_PRODUCTS and node.specs}
    known = [ceilings.flops_per_s[dtype] for dtype in dtypes if dtype in ceilings.flops_per_s]
    return max(known, default=ceilings.flops_per_s.get("float32", math.inf))


def _limiter(memory: float, compute: float, seconds: float, ceilings: Ceilings, resources: Resources) -> Limiter:
    if max(memory, compute) >= _BOUND_SHARE:
        return "memory" if memory >= compute else "compute"
    if seconds < _LAUNCHES * ceilings.launch_s:
        return "launch"
    occupancy = 1.0 if resources.occupancy is None else resources.occupancy.share
    if (resources.spills or 0) > 0 or occupancy < _LOW_OCCUPANCY:
        return "occupancy"
    return "latency"
