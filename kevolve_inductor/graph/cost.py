"""What a piece of a graph must cost (its floor) and what it probably costs (an estimate, to rank regions before measuring)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.fx

from ..exc import UnsupportedError
from ..platforms.platform import Ceilings
from .meta import hint_of, target_name

# How many times its bytes an operator typically costs where Inductor calls a library for it or needs several passes.
_SLOW = {
    "aten.topk.default": 20.0, "aten.sort.default": 20.0, "aten.sort.stable": 20.0, "aten.bucketize.Tensor": 10.0,
    "aten.searchsorted.Tensor": 10.0, "aten.index_add.default": 8.0, "aten.scatter_add.default": 8.0,
    "aten.index_put.default": 8.0, "aten.scatter_reduce.two": 8.0,
    "aten._unsafe_masked_index_put_accumulate.default": 8.0, "aten.segment_reduce.default": 8.0, "aten.cumsum.default": 6.0,
    "aten._embedding_bag.default": 3.0, "aten._embedding_bag_forward_only.default": 3.0, "aten.index.Tensor": 3.0,
    "aten.gather.default": 3.0, "aten.remainder.Scalar": 3.0,
    "aten.convolution.default": 4.0, "aten.convolution_backward.default": 8.0, "aten.avg_pool2d.default": 1.5,
    "aten.avg_pool3d.default": 1.5, "aten.avg_pool2d_backward.default": 3.0, "aten.avg_pool3d_backward.default": 3.0,
    "prims._low_memory_max_pool_with_offsets.default": 1.5, "aten.max_pool3d_with_indices.default": 3.0,
}  # fmt: skip
FREE = {
    "getitem", "aten.view.default", "aten.reshape.default", "aten.permute.default", "aten.expand.default",
    "aten.unsqueeze.default", "aten.squeeze.default", "aten.squeeze.dim", "aten.slice.Tensor", "aten.select.int",
    "aten.full.default", "prims.iota.default", "aten.sym_size.int", "aten.transpose.int", "aten.alias.default",
}  # fmt: skip
_PRODUCTS = {"aten.mm.default", "aten.bmm.default", "aten.addmm.default", "aten.baddbmm.default"}
_INDEXED = {"aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.embedding.default", "aten.index_select.default",
            "aten.gather.default"}  # fmt: skip
_BAGS = {"aten._embedding_bag.default", "aten._embedding_bag_forward_only.default"}
# Of their second argument only the shape matters.
_SHAPED_LIKE = {"aten.avg_pool2d_backward.default", "aten.avg_pool3d_backward.default"}
# Inductor fuses neighbours, so of a pointwise operator's traffic only a part reaches memory.
_FUSED_SHARE = 0.35


def value_bytes(value: object) -> int:
    """Bytes of the distinct elements of a (fake) tensor, by its hinted sizes; 0 for anything else."""
    if isinstance(value, (list, tuple)):
        return sum(value_bytes(item) for item in value)
    if not isinstance(value, torch.Tensor):
        return 0
    sizes = [hint_of(size) for size, step in zip(value.shape, value.stride(), strict=True) if hint_of(step) != 0]
    return math.prod(sizes) * value.element_size()


def product_flops(node: torch.fx.Node) -> int:
    """Multiplications and additions of a matrix product."""
    left, right = [a.meta["val"] for a in node.all_input_nodes[-2:]]
    return 2 * math.prod(map(hint_of, left.shape)) * hint_of(right.shape[-1])


def estimate_s(node: torch.fx.Node, ceilings: Ceilings) -> float:
    """A guess at one node's time under Inductor, in seconds."""
    name = target_name(node)
    if node.op != "call_function" or name in FREE:
        return 0.0
    try:
        total = value_bytes(node.meta.get("val")) + sum(_taken_bytes(a, node) for a in node.all_input_nodes)
        if name in _PRODUCTS:
            rate = max(ceilings.flops_per_s.values(), default=math.inf)
            return max(total / ceilings.bytes_per_s, product_flops(node) / rate)
    except UnsupportedError:
        return 0.0
    return total / ceilings.bytes_per_s * _SLOW.get(name, _FUSED_SHARE)


def least_bytes(
    inputs: Sequence[torch.fx.Node], nodes: Iterable[torch.fx.Node], outputs: Sequence[torch.fx.Node]
) -> int:
    """Bytes any kernel must move: every input once, of an indexed table only what is read, and every output once."""
    inside = set(nodes)
    total = sum(value_bytes(node.meta["val"]) for node in outputs)
    for node in inputs:
        users = [user for user in node.users if user in inside]
        read = value_bytes(node.meta["val"])
        if users:
            read = min(read, sum(_taken_bytes(node, user) for user in users))
        total += read
    return total


def _taken_bytes(source: torch.fx.Node, user: torch.fx.Node) -> int:
    """Bytes of ``source`` that ``user`` reads: all, or of an indexed table as many rows as there are indices."""
    read = value_bytes(source.meta.get("val"))
    if target_name(user) in _SHAPED_LIKE and source is not user.args[0]:
        return 0
    if not user.args or source is not user.args[0]:
        return read
    if target_name(user) in _INDEXED:
        return min(read, value_bytes(user.meta["val"]))
    if target_name(user) in _BAGS:
        table, indices = source.meta["val"], user.args[1].meta["val"]  # type: ignore[union-attr]
        return min(read, hint_of(indices.shape[0]) * hint_of(table.shape[1]) * table.element_size())
    return read


def floor_s(total_bytes: int, flops: int, dtype: str, ceilings: Ceilings) -> float:
    """The larger of memory time and arithmetic time at the measured ceilings."""
    rate = ceilings.flops_per_s.get(dtype) or max(ceilings.flops_per_s.values(), default=math.inf)
    return max(total_bytes / ceilings.bytes_per_s, flops / rate)
