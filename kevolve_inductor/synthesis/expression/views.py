"""Views as index maps: from an index into the result to the source node and an index into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.fx

from ...exc import UnsupportedError
from ...graph.dims import Dim, product
from ...graph.meta import dim_of, shape_of, tensor_of
from . import expression as ex
from .expression import Expr

Index = tuple[Expr, ...]
Mapped = tuple[torch.fx.Node, Index]


def broadcast(index: Index, shape: tuple[Dim, ...], onto: tuple[Dim, ...]) -> Index:
    """``index`` into ``onto``, as an index into ``shape``, which broadcasts to it."""
    skip = len(onto) - len(shape)
    pairs = zip(index[skip:], shape, onto[skip:], strict=True)
    return tuple(ex.index(0) if size == 1 and wide != 1 else at for at, size, wide in pairs)


def _source(node: torch.fx.Node) -> torch.fx.Node:
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    return source


def _argument(node: torch.fx.Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _identity(node: torch.fx.Node, index: Index) -> Mapped:
    return _source(node), index


def _view(node: torch.fx.Node, index: Index) -> Mapped:
    return _source(node), reshape_index(index, shape_of(node), shape_of(_source(node)))


def reshape_index(index: Index, from_shape: tuple[Dim, ...], to_shape: tuple[Dim, ...]) -> Index:
    """The index into ``to_shape`` with the same row-major position as ``index`` into ``from_shape``.

    Runs of dimensions with equal products are mapped separately, so that a size that a reshape leaves alone costs no
    division.
    """
    result: list[Expr] = []
    i = j = 0
    while i < len(from_shape) or j < len(to_shape):
        i_end, j_end = _next_group(from_shape, to_shape, i, j)
        result.extend(_map_group(index[i:i_end], from_shape[i:i_end], to_shape[j:j_end]))
        i, j = i_end, j_end
    return tuple(result)


def _next_group(from_shape: tuple[Dim, ...], to_shape: tuple[Dim, ...], i: int, j: int) -> tuple[int, int]:
    """Ends of the shortest prefixes from ``i`` and ``j`` with equal products (never empty on both sides)."""
    for total in range(1, len(from_shape) - i + len(to_shape) - j + 1):
        for taken in range(total + 1):
            i_end, j_end = i + taken, j + total - taken
            if i_end > len(from_shape) or j_end > len(to_shape):
                continue
            if product(from_shape[i:i_end]) == product(to_shape[j:j_end]):
                return i_end, j_end
    return len(from_shape), len(to_shape)


def _map_group(index: Index, from_dims: tuple[Dim, ...], to_dims: tuple[Dim, ...]) -> list[Expr]:
    if from_dims == to_dims:
        return list(index)
    linear = ex.index(0)
    for at, dim in zip(index, from_dims, strict=True):
        linear = ex.iadd(ex.imul(linear, ex.size(dim)), at)
    result: list[Expr] = []
    for dim in reversed(to_dims[1:]):
        linear, rest = ex.idivmod(linear, dim)
        result.append(rest)
    return [linear, *reversed(result)] if to_dims else []


def _permute(node: torch.fx.Node, index: Index) -> Mapped:
    source = _source(node)
    order = [d % len(index) for d in _argument(node, 1, "dims", None)]
    mapped = [ex.index(0)] * len(index)
    for position, dim in enumerate(order):
        mapped[dim] = index[position]
    return source, tuple(mapped)


def _transpose(node: torch.fx.Node, index: Index) -> Mapped:
    a, b = (int(d) % len(index) for d in node.args[1:3])  # type: ignore[arg-type]
    mapped = list(index)
    mapped[a], mapped[b] = mapped[b], mapped[a]
    return _source(node), tuple(mapped)


def _matrix_transpose(node: torch.fx.Node, index: Index) -> Mapped:
    return _source(node), tuple(reversed(index))


def _unsqueeze(node: torch.fx.Node, index: Index) -> Mapped:
    dim = int(node.args[1]) % len(index)  # type: ignore[arg-type]
    return _source(node), index[:dim] + index[dim + 1 :]


def _squeeze(node: torch.fx.Node, index: Index) -> Mapped:
    source = _source(node)
    shape = shape_of(source)
    wanted = _argument(node, 1, "dim", None)
    dims = range(len(shape)) if wanted is None else [wanted] if isinstance(wanted, int) else wanted
    dropped = {d % len(shape) for d in dims if shape[d % len(shape)] == 1} if shape else set()
    rest = iter(index)
    return source, tuple(ex.index(0) if d in dropped else next(rest) for d in range(len(shape)))


def _expand(node: torch.fx.Node, index: Index) -> Mapped:
    source = _source(node)
    return source, broadcast(index, shape_of(source), shape_of(node))


def _slice(node: torch.fx.Node, index: Index) -> Mapped:
    source = _source(node)
    dim = int(_argument(node, 1, "dim", 0)) % len(index)
    start, step = _argument(node, 2, "start", 0), int(_argument(node, 4, "step", 1))
    first = _resolved(0 if start is None else start, shape_of(source)[dim])
    at = ex.iadd(ex.imul(index[dim], ex.index(step)), first)
    return source, index[:dim] + (at,) + index[dim + 1 :]


def _select(node: torch.fx.Node, index: Index) -> Mapped:
    source = _source(node)
    shape = shape_of(source)
    dim = int(node.args[1]) % len(shape)  # type: ignore[arg-type]
    at = _resolved(node.args[2], shape[dim], clamp=False)
    return source, index[:dim] + (at,) + index[dim:]


def _as_strided(node: torch.fx.Node, index: Index) -> Mapped:
    """Of a tensor without gaps, whose memory is its elements in order."""
    source = _source(node)
    if not tensor_of(source).is_contiguous():
        raise UnsupportedError("layout", f"{node} reads the memory of {source}, which has gaps or another order")
    own, offset = tensor_of(source).storage_offset(), _argument(node, 3, "storage_offset", None)
    first = own if offset is None else offset
    if not isinstance(own, int) or not isinstance(first, int) or first < own:
        raise UnsupportedError("dynamic", f"{node} starts at {first} in the memory of {source}, which starts at {own}")
    steps = zip(index, node.args[2], strict=True)  # type: ignore[arg-type]
    flat = ex.isum([ex.index(first - own), *(ex.imul(at, ex.size(dim_of(step))) for at, step in steps)])
    shape = shape_of(source)
    return source, reshape_index((flat,), (product(shape),), shape)


def _resolved(position: Any, extent: Dim, clamp: bool = True) -> Expr:
    """A Python position (negative counts from the end, slices clamp) as an index."""
    at = dim_of(position)
    if isinstance(at, int) and at >= 0:
        return ex.index(min(at, extent) if clamp and isinstance(extent, int) else at)
    if isinstance(at, int) and isinstance(extent, int):
        return ex.index(max(at + extent, 0))
    raise UnsupportedError("dynamic", f"position {position} in an axis of size {extent}")


def _split_item(node: torch.fx.Node, index: Index) -> Mapped:
    """``getitem`` of ``split``, ``split_with_sizes`` or ``unbind``."""
    split = _source(node)
    which = int(node.args[1])  # type: ignore[arg-type]
    name = str(split.target)
    source = _source(split)
    shape = shape_of(source)
    if name == "aten.unbind.int":
        dim = int(_argument(split, 1, "dim", 0)) % len(shape)
        return source, index[:dim] + (ex.index(which),) + index[dim:]
    if name not in ("aten.split.Tensor", "aten.split_with_sizes.default"):
        raise UnsupportedError("structure", f"item of {name}")
    dim = int(_argument(split, 2, "dim", 0)) % len(shape)
    sizes = split.args[1]
    offset = ex.index(which * sizes) if isinstance(sizes, int) else ex.size(_sum(sizes[:which]))  # type: ignore[index]
    return source, index[:dim] + (ex.iadd(index[dim], offset),) + index[dim + 1 :]


def _sum(sizes: Any) -> Dim:
    dims = [dim_of(size) for size in sizes]
    if all(isinstance(d, int) for d in dims):
        return sum(d for d in dims if isinstance(d, int))
    return " + ".join(f"({d})" for d in dims)


def splits(node: torch.fx.Node) -> bool:
    """Is this ``getitem`` a view of a split tensor?"""
    source = node.args[0]
    names = ("aten.split.Tensor", "aten.split_with_sizes.default", "aten.unbind.int")
    return isinstance(source, torch.fx.Node) and str(source.target) in names


VIEWS: dict[str, Callable[[torch.fx.Node, Index], Mapped]] = {
    "aten.view.default": _view, "aten.reshape.default": _view, "aten._unsafe_view.default": _view,
    "aten.permute.default": _permute, "aten.transpose.int": _transpose, "aten.t.default": _matrix_transpose,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.default": _squeeze, "aten.squeeze.dim": _squeeze, "aten.squeeze.dims": _squeeze,
    "aten.expand.default": _expand, "aten.slice.Tensor": _slice, "aten.select.int": _select,
    "aten.as_strided.default": _as_strided,
    "aten.clone.default": _identity, "aten.alias.default": _identity, "aten.detach.default": _identity,
    "aten.lift_fresh_copy.default": _identity,
    "getitem": _split_item,
}  # fmt: skip
