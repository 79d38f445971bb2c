"""Reading what leaves a region as bags: an output's parts, each with the reductions that it is computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch.fx

from ....exc import UnsupportedError
from ....graph.meta import dtype_name, shape_of, spec_of, target_name, tensor_of
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.loops import Store
from .embedding_bag import EmbeddingBag
from .parts import joints
from .plan import POSITION, Axis, Bag, Combine, Fold, Loop, Span, gathers, is_gather
from .selection import POOLS, PREPARED, PRODUCT

# The results of one row are kept on the stack of a thread.
_MOST_ACCUMULATORS = 8192

Index = tuple[Expr, ...]


class Reader:
    """Reads values that leave a region. ``used`` are nodes of the region that the builder did not inline."""

    def __init__(
        self, builder: ExpressionBuilder, reductions: Sequence[torch.fx.Node], inside: set[torch.fx.Node]
    ) -> None:
        self.builder = builder
        self.used: dict[torch.fx.Node, None] = {}
        self._inside = inside
        self._folds: dict[tuple[Span, Expr, Combine], Fold] = {}
        self._fails: dict[str, tuple[Expr, ...]] = {}
        for node in reductions:
            element = self._element_of(node)
            builder.bind(node, lambda index, node=node, element=element: element(node, index))  # type: ignore[misc]

    def bags(self, node: torch.fx.Node, output: int) -> Iterator[Bag]:
        """One bag for each part of ``node`` where it is made of concatenated parts, else one."""
        shape, strides = shape_of(node), spec_of(tensor_of(node)).stride
        dim, bounds = joints(node, self._inside)
        for low, high in pairwise(bounds):
            index: list[Expr] = []
            axes: list[Axis] = []
            for d, size in enumerate(shape):
                start, extent = (low, high - low) if d == dim else (0, size)
                axes += [] if extent == 1 else [(f"x{d}", extent)]
                at = ex.index(0) if extent == 1 else ex.var(f"x{d}", extent)
                index.append(ex.iadd(at, ex.index(start)))
            offset = ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(index, strides, strict=True)])
            yield self._read(node, tuple(axes), Store(self.builder.build(node, tuple(index)), offset, output))

    def _read(self, node: torch.fx.Node, axes: tuple[Axis, ...], store: Store) -> Bag:
        used = set(ex.variables(store.value))
        for fold in reversed(self._folds.values()):
            if fold.name in used:
                used |= ex.variables(fold.body)
        # A fold over what others have found comes after them.
        stages: dict[str, int] = {}
        folds: dict[tuple[int, Span], list[Fold]] = {}
        for (span, _, _), fold in self._folds.items():
            if fold.name in used:
                stages[fold.name] = 1 + max((stages.get(name, -1) for name in ex.variables(fold.body)), default=-1)
                folds.setdefault((stages[fold.name], span), []).append(fold)
        loops = tuple(Loop(span, tuple(own)) for (_, span), own in sorted(folds.items(), key=lambda item: item[0][0]))
        if loops and not any(_picks(read) for loop in loops for fold in loop.folds for read in gathers(fold.body)):
            raise UnsupportedError("structure", f"{node} pools nothing that is gathered")
        inner = _inner(axes, loops)
        if any(not isinstance(extent, int) for _, extent in inner):
            raise UnsupportedError("dynamic", f"{node} has rows of dynamic size")
        if math.prod(int(extent) for _, extent in inner) > _MOST_ACCUMULATORS:
            raise UnsupportedError("size", f"the rows of {node} are too long to be kept")
        fails = dict.fromkeys(fail for name in self._fails if name in used for fail in self._fails[name])
        return Bag(tuple(axis for axis in axes if axis not in inner), inner, loops, tuple(fails), (store,))

    def _fold(self, span: Span, body: Expr, combine: Combine, fails: tuple[Expr, ...] = ()) -> Expr:
        if combine != "add" and body.dtype in ("bool", "uint8"):
            raise UnsupportedError("dtype", f"extremes of {body.dtype}")
        key = (span, body, combine)
        if key not in self._folds:
            name = f"fold{len(self._folds)}"
            self._folds[key], self._fails[name] = Fold(name, body, combine, body.dtype), fails
        return ex.var(self._folds[key].name, None, body.dtype)

    def _element_of(self, node: torch.fx.Node) -> Callable[[torch.fx.Node, Index], Expr]:
        if target_name(node) == PRODUCT:
            return self._weighed
        if target_name(node) != "getitem":
            return self._pooled
        return self._prepared if target_name(node.args[0]) == PREPARED else self._bagged  # type: ignore[arg-type]

    def _bagged(self, node: torch.fx.Node, index: Index) -> Expr:
        call: Any = node.args[0]
        self.used |= dict.fromkeys((call, node))
        return EmbeddingBag(call, self.builder).element(index[0], index[1], self._fold)

    def _pooled(self, node: torch.fx.Node, index: Index) -> Expr:
        operand: Any = node.args[0]
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim") or []
        keeps = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
        name = dtype_name(tensor_of(node).dtype)
        body, length = self._along(node, operand, given, index, keeps, name)
        self.used[node] = None
        result = self._fold(Span.of(length), body, POOLS[target_name(node)])
        if target_name(node) == "aten.mean.dim":
            result = ex.make("truediv", body.dtype, (result, ex.const(length, body.dtype)))
        return ex.cast(result, name)

    def _weighed(self, node: torch.fx.Node, index: Index) -> Expr:
        """``left[b, i, :] · right[b, :, j]``, which a product accumulates unrounded."""
        left, right = node.args[:2]
        batch, row, column = index
        length = shape_of(right)[1]  # type: ignore[arg-type]
        if any(POSITION in ex.variables(at) for at in index):
            raise UnsupportedError("structure", f"{node} is another number for every position")
        if not isinstance(length, int):
            raise UnsupportedError("structure", f"{node} does not reduce one axis of known length")
        at = ex.var(POSITION, length) if length > 1 else ex.index(0)
        name = dtype_name(tensor_of(node).dtype)
        held = "float32" if name in ex.LOW_PRECISION else name
        factors = (self.builder.build(left, (batch, row, at)), self.builder.build(right, (batch, at, column)))  # type: ignore[arg-type]
        self.used[node] = None
        body = ex.make("mul", held, tuple(ex.cast(factor, held) for factor in factors))
        return ex.cast(self._fold(Span.of(length), body, "add"), name)

    def _prepared(self, node: torch.fx.Node, index: Index) -> Expr:
        """The greatest of a row, or the sum of the exponentials of what its elements are below it."""
        call: Any = node.args[0]
        name = dtype_name(tensor_of(node).dtype)
        body, length = self._along(node, call.args[0], [call.args[1]], index, True, name)
        self.used |= dict.fromkeys((call, node))
        result = self._fold(Span.of(length), body, "maximum")
        if node.args[1] == 1:
            below = ex.make("sub", body.dtype, (body, result))
            result = self._fold(Span.of(length), ex.make("exp", body.dtype, (below,)), "add")
        return ex.cast(result, name)

    def _along(
        self, node: torch.fx.Node, operand: Any, dims: Sequence[int], index: Index, keeps: bool, name: str
    ) -> tuple[Expr, int]:
        """What ``node`` reduces at one position of a bag, as it is held, and how many positions there are."""
        shape = shape_of(operand)
        if any(POSITION in ex.variables(at) for at in index):
            raise UnsupportedError("structure", f"{node} is another number for every position")
        if len(dims) != 1 or not isinstance(shape[dims[0]], int):
            raise UnsupportedError("structure", f"{node} does not reduce one axis of known length")
        dim = int(dims[0]) % len(shape)
        length = int(shape[dim])
        at = ex.var(POSITION, length) if length > 1 else ex.index(0)
        place = (*index[:dim], at, *index[dim + 1 if keeps else dim :])
        held = "float32" if name in ex.LOW_PRECISION else name
        return ex.cast(self.builder.build(operand, place), held), length


def _data(read: Expr) -> list[Expr]:
    return [part for at in read.args for part in ex.walk(at) if part.op == "load"]


def _picks(read: Expr) -> bool:
    """Does every position name its row? What runs along from a place that data give is a jagged tensor instead."""
    return any(POSITION in ex.variables(part) and not is_gather(part) for part in _data(read))


def _inner(axes: tuple[Axis, ...], loops: tuple[Loop, ...]) -> tuple[Axis, ...]:
    """The axes along which rows of tables are read: gathers move along them, but no index does."""
    if not loops:
        return axes[-1:]
    moved: set[str] = set()
    fixed = {name for loop in loops for end in (loop.span.low, loop.span.high) for name in ex.variables(end)}
    for read in (read for loop in loops for fold in loop.folds for read in gathers(fold.body)):
        moved |= ex.variables(read)
        fixed |= {name for part in _data(read) for name in ex.variables(part)}
    return tuple(axis for axis in axes if axis[0] in moved - fixed)
