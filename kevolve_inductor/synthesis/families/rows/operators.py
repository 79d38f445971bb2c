"""Which operators select and reduce along axes, read off FX nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.fx

from ....exc import UnsupportedError
from ....graph.meta import shape_of, target_name
from .program import Order

_REDUCTIONS = {"aten.sum.dim_IntList": "sum", "aten.amax.default": "amax", "aten.amin.default": "amin",
               "aten.mean.dim": "mean", "aten.var_mean.correction": "var_mean", "aten.var.correction": "var",
               "aten.any.dim": "any", "aten.any.dims": "any",
               "prims.prepare_softmax_online.default": "softmax"}  # fmt: skip
# Of all axes, which are one row.
_WHOLES = {"aten.sum.default": "sum", "aten.sum.dim_IntList": "sum", "aten.mean.default": "mean",
           "aten.amax.default": "amax", "aten.amin.default": "amin"}  # fmt: skip
_TO_A_NUMBER = "reduced to a number"
_SELECTIONS = {"aten.topk.default", "aten.sort.default", "aten.sort.stable", "aten.argmax.default", "aten.argmin.default",
               "aten.max.dim", "aten.min.dim", "aten.kthvalue.default"}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """What a selection node asks for. ``dim`` counts from the front; ``keeps`` whether the result has that axis.

    ``element``: only the last of the ``count`` selected is given (k-th value). ``any_of_equals``: eager promises no order
    among equal elements.
    """

    source: torch.fx.Node
    dim: int
    count: int
    order: Order
    keeps: bool
    element: bool = False
    any_of_equals: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)


@dataclass(frozen=True)
class Reduction:
    """What a reduction node asks for; ``kind`` is a :data:`program.ReduceOp`, or any, mean, var, var_mean, softmax (max and sum).

    ``dims`` count from the front and ascend.
    """

    source: torch.fx.Node
    dims: tuple[int, ...]
    kind: str
    keeps: bool
    correction: float = 1


def is_selection(node: torch.fx.Node) -> bool:
    return target_name(node) in _SELECTIONS


def is_reduction(node: torch.fx.Node) -> bool:
    return target_name(node) in _REDUCTIONS or _TO_A_NUMBER in node.meta


def is_whole_reduction(node: torch.fx.Node) -> bool:
    """Whether all axes of a tensor are reduced to a number."""
    return target_name(node) in _WHOLES and not _argument(node, 1, "dim") and not shape_of(node)


@contextmanager
def as_reduction(node: torch.fx.Node) -> Iterator[None]:
    """While a program around it is looked for, ``node`` reduces a row that is all of its tensor. Nobody else looks at it so:
    what comes before it is a program of its own rather."""
    node.meta[_TO_A_NUMBER] = True
    try:
        yield
    finally:
        del node.meta[_TO_A_NUMBER]


def selection_of(node: torch.fx.Node) -> Selection:
    """Raises ``UnsupportedError`` for a form that is no selection along one static axis."""
    name = target_name(node).split(".")[1]
    source = _source(node)
    rank = len(shape_of(source))
    if name == "topk":
        k, dim, largest = _argument(node, 1, "k"), _argument(node, 2, "dim", -1), _argument(node, 3, "largest", True)
        return Selection(source, _axis(node, dim, rank), _count(node, k), "greatest" if largest else "smallest", True,
                         any_of_equals=True)  # fmt: skip
    if name == "sort":
        stable = target_name(node) == "aten.sort.stable"
        dim = node.kwargs.get("dim", -1) if stable else _argument(node, 1, "dim", -1)
        descending = node.kwargs.get("descending", False) if stable else _argument(node, 2, "descending", False)
        at = _axis(node, dim, rank)
        return Selection(source, at, extent(node, source, at), "greatest" if descending else "smallest", True,
                         any_of_equals=not (stable and node.kwargs.get("stable")))  # fmt: skip
    if name == "kthvalue":
        k, dim, keeps = _argument(node, 1, "k"), _argument(node, 2, "dim", -1), _argument(node, 3, "keepdim", False)
        at, count = _axis(node, dim, rank), _count(node, k)
        return Selection(source, at, count, "smallest", bool(keeps), element=True, any_of_equals=True)
    dim, keeps = _argument(node, 1, "dim", None), _argument(node, 2, "keepdim", False)
    return Selection(source, _axis(node, dim, rank), 1, "greatest" if "max" in name else "least", bool(keeps))


def reduction_of(node: torch.fx.Node) -> Reduction:
    """Raises ``UnsupportedError`` for a reduction to a single number, but within ``as_reduction``."""
    source = _source(node)
    rank = len(shape_of(source))
    if _TO_A_NUMBER in node.meta:
        return Reduction(source, tuple(range(rank)), _WHOLES[target_name(node)], False)
    kind = _REDUCTIONS[target_name(node)]
    if kind == "softmax":
        return Reduction(source, _axes(node, node.args[1], rank), kind, True)
    if kind in ("var", "var_mean"):
        given: Any = node.kwargs.get("correction")
        keeps, correction = node.kwargs.get("keepdim", False), 1.0 if given is None else float(given)
    else:
        keeps, correction = _argument(node, 2, "keepdim", False), 1.0
    return Reduction(source, _axes(node, _argument(node, 1, "dim", None), rank), kind, bool(keeps), correction)


def extent(node: torch.fx.Node, source: torch.fx.Node, dim: int) -> int:
    """Size of an axis. Raises ``UnsupportedError`` where it is not known at compile time."""
    size = shape_of(source)[dim]
    if not isinstance(size, int):
        raise UnsupportedError("dynamic", f"{node} runs along an axis of size {size}")
    return size


def _source(node: torch.fx.Node) -> torch.fx.Node:
    source = node.args[0]
    if not isinstance(source, torch.fx.Node):
        raise UnsupportedError("structure", f"{node} has no tensor argument")
    return source


def _argument(node: torch.fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _axis(node: torch.fx.Node, dim: Any, rank: int) -> int:
    if not isinstance(dim, int) or rank == 0:
        raise UnsupportedError("structure", f"{node} is not along exactly one axis")
    return dim % rank


def _axes(node: torch.fx.Node, dim: Any, rank: int) -> tuple[int, ...]:
    dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
    if not dims or rank == 0 or not all(isinstance(one, int) for one in dims):
        raise UnsupportedError("structure", f"{node} is along no axis, or along all")
    return tuple(sorted({one % rank for one in dims}))


def _count(node: torch.fx.Node, k: Any) -> int:
    if not isinstance(k, int):
        raise UnsupportedError("dynamic", f"{node} selects a number of elements that is not known at compile time")
    if k < 1:
        raise UnsupportedError("size", f"{node} selects nothing")
    return k
