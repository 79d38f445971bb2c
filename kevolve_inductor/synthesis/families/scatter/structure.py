"""Reading an operator that scatters as events with rows; each spelling has its own rules for indices out of range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import dtype_name, shape_of, spec_of, target_name, tensor_of
from ...expression import ExpressionBuilder, writes_one_place
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.rules import checked
from ...expression.views import broadcast
from .plan import EVENT, ROW, Axis, Combine, Scatter

BAG_GRADIENTS = ("aten._embedding_bag_backward.default", "aten._embedding_bag_dense_backward.default")
# Sums and means.
_POOLED = (0, 1)
_REDUCTIONS: dict[str, Combine] = {"sum": "add", "amax": "maximum", "amin": "minimum"}


@dataclass(frozen=True)
class _Call:
    """A scatter by its arguments: index tensors for the first axes of ``base``, broadcast to ``shape``, and values.

    Without ``base`` it is added to zeros. ``through`` says which row of ``values`` an event has, ``divisor`` holds a number for
    each such row, ``weights`` one for each event, and the row ``skipped`` receives nothing.
    """

    base: torch.fx.Node | None
    indices: tuple[torch.fx.Node, ...]
    shape: tuple[Dim, ...]
    values: torch.fx.Node
    combine: Combine = "add"
    alpha: float | int = 1
    mask: torch.fx.Node | None = None
    wraps: bool = False
    clamps: bool = False
    through: torch.fx.Node | None = None
    divisor: torch.fx.Node | None = None
    weights: torch.fx.Node | None = None
    skipped: int = -1


def is_scatter(node: torch.fx.Node) -> bool:
    """Does this combine rows? Writing without combining leaves open which of several events counts; a single place written
    of each row is no event."""
    name = target_name(node)
    if writes_one_place(node):
        return False
    if name == "aten.index_put.default":
        return len(node.args) > 3 and bool(node.args[3])
    return name in _CALLS


def read(node: torch.fx.Node, builder: ExpressionBuilder) -> Scatter:
    """Raises ``UnsupportedError`` where rows are not named by whole rows of indices, or memory is in another order."""
    call = _CALLS[target_name(node)](node)
    shape, spec = shape_of(node), spec_of(tensor_of(node))
    count = len(call.indices)
    if count > len(shape):
        raise UnsupportedError("structure", f"{node} is a single number and has no rows")
    if any(tensor_of(index).dtype in (torch.bool, torch.uint8) for index in call.indices):
        raise UnsupportedError("dynamic", f"{node}: boolean mask")
    for d in range(count - 1):
        if spec.stride[d] != product((spec.stride[d + 1], shape[d + 1])):
            raise UnsupportedError("layout", f"the rows of {node} are not evenly spaced in memory")
    at = _coordinates(call.shape)
    inner = tuple(ex.index(0) if size == 1 else ex.var(f"x{d}", size) for d, size in enumerate(shape[count:]))
    axes: tuple[Axis, ...] = tuple((f"x{d}", size) for d, size in enumerate(shape[count:]) if size != 1)
    if any(not isinstance(size, int) for _, size in axes):
        raise UnsupportedError("dynamic", f"{node} has rows of dynamic size")
    onto = (*call.shape, *shape[count:])
    name = dtype_name(tensor_of(node).dtype)
    held = "float32" if name in ex.LOW_PRECISION else name

    def element(source: torch.fx.Node) -> Expr:
        return builder.build(source, broadcast((*at, *inner), shape_of(source), onto))

    value = ex.cast(element(call.values) if call.through is None else _row_of(builder, call, at, inner), held)
    if call.alpha != 1:
        value = ex.make("mul", held, (value, ex.const(call.alpha, held)))
    rows = shape[:count]
    start = _coordinates(rows, ROW)
    places = tuple(
        _place(builder.build(index, _index_place(at, shape_of(index), call.shape)), size, call)
        for index, size in zip(call.indices, rows, strict=True)
    )
    condition = None if call.mask is None else ex.cast(element(call.mask), "bool")
    if call.skipped >= 0:
        condition = ex.make("ne", "bool", (places[0], ex.index(call.skipped)))
    return Scatter(
        events=product(call.shape),
        rows=rows,
        inner=axes,
        places=places,
        condition=condition,
        value=value,
        base=ex.const(0, held) if call.base is None else ex.cast(builder.build(call.base, (*start, *inner)), held),
        combine=call.combine,
        held=held,
        step=spec.stride[count - 1],
        offset=ex.isum([ex.imul(x, ex.size(step)) for x, step in zip(inner, spec.stride[count:], strict=True)]),
    )


def _row_of(builder: ExpressionBuilder, call: _Call, at: tuple[Expr, ...], inner: tuple[Expr, ...]) -> Expr:
    """The row of ``values`` that an event has, as ``through`` says, divided and weighed."""
    assert call.through is not None
    row = checked(builder.build(call.through, at), shape_of(call.values)[0], wrap=False)
    value = builder.build(call.values, (row, *inner))
    if call.divisor is not None:
        value = ex.make("truediv", value.dtype, (value, ex.cast(builder.build(call.divisor, (row,)), value.dtype)))
    if call.weights is not None:
        value = ex.make("mul", value.dtype, (value, ex.cast(builder.build(call.weights, at), value.dtype)))
    return value


def _coordinates(shape: Sequence[Dim], name: str = EVENT) -> tuple[Expr, ...]:
    """The coordinates of a flat place in ``shape``."""
    rest = ex.var(name, product(tuple(shape)))
    found: list[Expr] = []
    for size in reversed(shape[1:]):
        rest, at = ex.idivmod(rest, size)
        found.append(at)
    return (rest, *reversed(found)) if shape else ()


def _index_place(at: tuple[Expr, ...], shape: tuple[Dim, ...], events: tuple[Dim, ...]) -> tuple[Expr, ...]:
    """Where an index tensor holds an event's row: it may have been expanded along rows, or be broadcast to the events."""
    if len(shape) > len(events):
        return (*at, *(ex.index(0) for _ in shape[len(events) :]))
    return broadcast(at, shape, events)


def _place(at: Expr, size: Dim, call: _Call) -> Expr:
    at = ex.cast(at, "int64")
    if call.clamps:
        low = ex.make("maximum", "int64", (at, ex.imul(ex.size(size), ex.index(-1))))
        at = ex.make("minimum", "int64", (low, ex.iadd(ex.size(size), ex.index(-1))))
    return checked(at, size, wrap=call.wraps)


# --- one function per operator ---


def _argument(node: torch.fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _index_put(node: torch.fx.Node) -> _Call:
    """``index_put(base, indices, values, True)``."""
    base, indices, values = node.args[:3]
    return _put(node, base, indices, values)


def _masked_index_put(node: torch.fx.Node) -> _Call:
    """``_unsafe_masked_index_put_accumulate(base, mask, indices, values)``: indices are clamped, not checked."""
    base, mask, indices, values = node.args[:4]
    return _put(node, base, indices, values, mask=mask, clamps=True)


def _put(node: torch.fx.Node, base: Any, indices: Any, values: Any, **options: Any) -> _Call:
    used = tuple(index for index in indices if index is not None)
    if not used or list(indices[: len(used)]) != list(used):
        raise UnsupportedError("structure", f"{node} does not index the first axes")
    shape = torch.broadcast_shapes(*(tensor_of(index).shape for index in used))
    dims = shape_of(max(used, key=lambda index: len(shape_of(index))))
    if any(not isinstance(size, int) for size in dims) and len(used) > 1:
        raise UnsupportedError("dynamic", f"{node} has several indices of dynamic size")
    return _Call(base, used, dims if len(used) == 1 else tuple(map(int, shape)), values, wraps=True, **options)


def _index_add(node: torch.fx.Node) -> _Call:
    """``index_add(base, dim, index, values, alpha)``."""
    base, dim, index, values = node.args[:4]
    if dim != 0 or len(shape_of(index)) != 1:  # type: ignore[arg-type]
        raise UnsupportedError("structure", f"{node} does not add along the first axis")
    alpha = node.kwargs.get("alpha", 1)
    return _Call(base, (index,), shape_of(index), values, alpha=alpha)  # type: ignore[arg-type]


def _scatter(node: torch.fx.Node) -> _Call:
    """``scatter_add`` and ``scatter_reduce`` along the first axis by an index that is the same for whole rows."""
    base, dim, index, values = node.args[:4]
    reduce = "sum" if "scatter_add" in target_name(node) else _argument(node, 4, "reduce", "")
    if dim != 0 or reduce not in _REDUCTIONS or not _argument(node, 5, "include_self", True):
        raise UnsupportedError("structure", f"{node} does not combine rows along the first axis with what is there")
    spec = spec_of(tensor_of(index))  # type: ignore[arg-type]
    if any(step != 0 and size != 1 for size, step in zip(spec.shape[1:], spec.stride[1:], strict=True)):
        raise UnsupportedError("structure", f"{node} names a row for every element")
    if spec.shape[1:] != shape_of(node)[1:] or spec.shape != shape_of(values):  # type: ignore[arg-type]
        raise UnsupportedError("structure", f"{node} leaves out parts of rows")
    return _Call(base, (index,), spec.shape[:1], values, combine=_REDUCTIONS[reduce])  # type: ignore[arg-type]


def _bag_gradient(node: torch.fx.Node) -> _Call:
    """``_embedding_bag_backward(grad, indices, offsets, offset2bag, bag_size, maximum_indices, num_weights,
    scale_grad_by_freq, mode, sparse, per_sample_weights, padding_idx)`` of sums and means."""
    arguments: Any = node.args
    gradient, indices, _, bags, sizes, _, _, scales, mode, sparse, weights = arguments[:11]
    skipped = _argument(node, 11, "padding_idx", -1)
    return _of_bags(node, gradient, indices, bags, sizes, scales or sparse, mode, weights, skipped)


def _dense_bag_gradient(node: torch.fx.Node) -> _Call:
    """The same without ``offsets`` and ``sparse``, as it is called by the former."""
    arguments: Any = node.args
    gradient, indices, bags, sizes, _, _, scales, mode, weights = arguments[:9]
    return _of_bags(node, gradient, indices, bags, sizes, scales, mode, weights, _argument(node, 9, "padding_idx", -1))


def _of_bags(
    node: torch.fx.Node, gradient: torch.fx.Node, indices: torch.fx.Node, bags: torch.fx.Node, sizes: torch.fx.Node,
    is_other: bool, mode: int, weights: torch.fx.Node | None, skipped: Any,
) -> _Call:  # fmt: skip
    """``is_other``: gradients are scaled by how often a row is used, or stay sparse."""
    if is_other or mode not in _POOLED:
        raise UnsupportedError("structure", f"{node} is not the dense gradient of sums or means")
    shape = shape_of(indices)
    if len(shape) != 1 or shape_of(bags) != shape:
        raise UnsupportedError("structure", f"{node} does not say which bag each event belongs to")
    divisor = sizes if mode == _POOLED[1] else None
    return _Call(
        None, (indices,), shape, gradient, through=bags, divisor=divisor, weights=weights, skipped=int(skipped)
    )


_CALLS: dict[str, Callable[[torch.fx.Node], _Call]] = {
    "aten.index_put.default": _index_put, "aten.index_add.default": _index_add,
    "aten._unsafe_masked_index_put_accumulate.default": _masked_index_put,
    "aten.scatter_add.default": _scatter, "aten.scatter_reduce.two": _scatter,
    **dict(zip(BAG_GRADIENTS, (_bag_gradient, _dense_bag_gradient), strict=True)),
}  # fmt: skip
