"""Products as they were asked for.

Inductor lays zeros around operands of odd sizes, so that a library's kernels find them aligned, and cuts the result. Kernels of
ours take any size, and copying the operands costs more than a thin product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch.fx

from ..exc import UnsupportedError
from .dims import Dim
from .meta import shape_of, target_name

_PRODUCTS = ("aten.mm.default", "aten.bmm.default", "aten.addmm.default")


@dataclass(frozen=True)
class Rewrite:
    """``node`` is the same value as ``target`` called with other nodes before it."""

    node: torch.fx.Node
    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def without_padding(graph: torch.fx.Graph) -> list[Rewrite]:
    """For each padded product, the same on what its operands were, in graph order."""
    found = (_rewrite(node) for node in graph.nodes if target_name(node) in _PRODUCTS)
    return [one for one in found if one is not None]


def _rewrite(product: torch.fx.Node) -> Rewrite | None:
    """``None`` where nothing is padded, or more than alignment needs."""
    arguments: tuple[Any, ...] = product.args
    if product.kwargs.keys() - {"alpha", "beta"}:
        return None
    left, _, along_left = _unpadded(arguments[-2])
    right, along_right, _ = _unpadded(arguments[-1])
    if along_left != along_right or (left, right) == arguments[-2:]:
        return None
    try:
        shape = (*shape_of(left)[:-1], shape_of(right)[-1])
        cut = _cut(product, shape)
        added = [_before_zeros(node) for node in arguments[:-2]]
        if cut is None or not all(_broadcasts(shape_of(node), shape) for node in added):
            return None
    except UnsupportedError:
        # Sizes that cannot be compared.
        return None
    return Rewrite(cut, cast(torch._ops.OpOverload, product.target), (*added, left, right), product.kwargs)


def _unpadded(matrix: torch.fx.Node) -> tuple[torch.fx.Node, int, int]:
    """What lies in front of zeros, and how many rows and columns of these there are."""
    if target_name(matrix) != "aten.constant_pad_nd.default":
        return matrix, 0, 0
    arguments: tuple[Any, ...] = matrix.args
    source, padding, *value = arguments
    before, columns, above, rows, *others = [*padding, 0, 0][: max(4, len(padding))]
    is_static = all(isinstance(count, int) and count >= 0 for count in (rows, columns))
    if any((before, above, *others, *value)) or not is_static:
        return matrix, 0, 0
    return source, rows, columns


def _cut(product: torch.fx.Node, shape: tuple[Dim, ...]) -> torch.fx.Node | None:
    """Where the product, or the only part of it that is used, has ``shape`` and begins with the first element."""
    node = product
    while shape_of(node) != shape:
        user = next(iter(node.users), node)
        if len(node.users) != 1 or target_name(user) != "aten.slice.Tensor":
            return None
        # The axis, the first element, the end and the step: what is left out is all of it.
        if any(user.args[2:3]) or any(step != 1 for step in user.args[4:]):
            return None
        node = user
    return node


def _before_zeros(node: torch.fx.Node) -> torch.fx.Node:
    while target_name(node) == "aten.cat.default":
        parts = cast(list[torch.fx.Node], node.args[0])
        if len(parts) != 2 or target_name(parts[1]) != "aten.full.default" or parts[1].args[1] != 0:
            break
        node = parts[0]
    return node


def _broadcasts(shape: tuple[Dim, ...], to: tuple[Dim, ...]) -> bool:
    return all(own in (1, other) for own, other in zip(reversed(shape), reversed(to), strict=False))
