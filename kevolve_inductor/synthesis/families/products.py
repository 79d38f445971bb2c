"""Matrix products in a graph as they were written, without the zeros that Inductor pads them with on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.fx

from ...graph.meta import shape_of, target_name

_PLAIN = ("aten.mm.default", "aten.bmm.default")
_BIASED = ("aten.addmm.default", "aten.baddbmm.default")


@dataclass(frozen=True)
class Product:
    """``node`` is ``alpha * left @ right + beta * bias``; ``inner`` are the nodes that compute it, ``node`` among them."""

    node: torch.fx.Node
    left: torch.fx.Node
    right: torch.fx.Node
    bias: torch.fx.Node | None
    alpha: float
    beta: float
    inner: tuple[torch.fx.Node, ...]


def is_product(node: torch.fx.Node) -> bool:
    name = target_name(node)
    return name in _PLAIN or name in _BIASED


def product_of(node: torch.fx.Node) -> Product:
    """What ``node``, for which :func:`is_product` holds, computes."""
    bias, left, right = (None, *node.args[:2]) if target_name(node) in _PLAIN else node.args[:3]
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    result, operands, inner = unpadded(node, left, right)
    if result is not node and bias is not None:
        bias = without_zeros(bias)
    return Product(result, *operands, bias, alpha, beta, inner)  # type: ignore[arg-type]


def unpadded(
    matrix: torch.fx.Node, left: Any, right: Any
) -> tuple[torch.fx.Node, tuple[Any, Any], tuple[torch.fx.Node, ...]]:
    """The product of ``left`` and ``right`` without the zeros that make its sizes multiples of what a chip likes.

    Returns the node whose shape is that of the product proper, the operands proper, and the nodes from there to here.
    """
    operands = (without_zeros(left), without_zeros(right))
    pads = tuple(one for one, inside in zip((left, right), operands, strict=True) if one is not inside)
    if not pads or any(len(pad.users) > 1 for pad in pads):
        return matrix, (left, right), (matrix,)
    wanted = (*shape_of(operands[0])[:-1], shape_of(operands[1])[-1])
    node, slices = matrix, []
    while shape_of(node) != wanted:
        user = next(iter(node.users)) if len(node.users) == 1 else node
        start, step = (*user.args[2:3], 0)[0], (*user.args[4:5], 1)[0]
        if target_name(user) != "aten.slice.Tensor" or start not in (0, None) or step != 1:
            return matrix, (left, right), (matrix,)
        node = user
        slices.append(user)
    if shape_of(operands[0])[-1] != shape_of(operands[1])[-2]:
        return matrix, (left, right), (matrix,)
    return node, operands, (*slices, *pads, matrix)


def without_zeros(value: Any) -> Any:
    """What a node appends zeros to, or the node itself."""
    if not isinstance(value, torch.fx.Node) or target_name(value) != "aten.constant_pad_nd.default" or value.kwargs:
        return value
    widths: Any
    source, widths, *fill = value.args
    appended = all(isinstance(width, int) and width >= 0 for width in widths) and not any(widths[::2])
    return source if appended and fill in ([], [0], [0.0]) else value
