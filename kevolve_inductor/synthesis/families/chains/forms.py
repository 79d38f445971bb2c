"""Where the elements of a node stand in a tile: its *form*, an index per dimension over sample, row and column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import hint_of, shape_of, target_name, tensor_of
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.views import reshape_index
from .flat import folded
from .plan import COLUMN, ROW, SAMPLE

Index = tuple[Expr, ...]

_RESHAPES = {"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"}
_SAME = {"aten.clone.default", "aten.alias.default", "aten.detach.default"}


class BlockedError(UnsupportedError):
    """``node`` cannot be part of the chain."""

    def __init__(self, node: torch.fx.Node, message: str, code: str = "structure") -> None:
        super().__init__(code, message)
        self.node = node


@dataclass(frozen=True)
class Form:
    """``index`` into a node, for each place of a tile of ``rows`` × ``columns``."""

    index: Index
    rows: Dim
    columns: Dim

    def without(self, axes: tuple[int, ...], dims: Sequence[int], keeps: bool) -> Form:
        """Of a reduction over ``axes`` of the tile, which are the node's ``dims``."""
        index = (ex.index(0) if d in dims else at for d, at in enumerate(self.index) if keeps or d not in dims)
        return Form(tuple(index), 1 if 0 in axes else self.rows, 1 if 1 in axes else self.columns)


@dataclass(frozen=True)
class Frame:
    """The samples (``None``: there is one matrix only) and the rows of each, to which whole matrices are cut.

    ``seen`` are the numbers of both at compile time.
    """

    batch: Dim | None
    rows: Dim
    seen: tuple[int, int]

    def rows_of(self, shape: tuple[Dim, ...]) -> Dim | None:
        """Rows in each sample of a matrix, or of a stack of matrices, of this shape; ``None`` where it is cut otherwise."""
        if self.batch is None or self._is_stack(shape):
            return shape[-2] if self._is_stack(shape) or _is_one(shape) else None
        total = shape[-2]
        if not _is_one(shape):
            return None
        if isinstance(total, int) and isinstance(self.batch, int):
            return total // self.batch if total % self.batch == 0 else None
        return self.rows if total == product((self.batch, self.rows)) else None

    def matrix(self, shape: tuple[Dim, ...], row: Expr, column: Expr) -> Index:
        """The index of a sample's element; a plain matrix holds the rows of all samples, one sample after another."""
        if self.batch is None:
            return (*_lead(shape), row, column)
        sample = along(SAMPLE, self.batch)
        if self._is_stack(shape):
            return (sample, row, column)
        rows = self.rows_of(shape)
        assert rows is not None
        return (*_lead(shape), *reshape_index((sample, row), (self.batch, rows), (shape[-2],)), column)

    def shared(self, shape: tuple[Dim, ...], row: Expr, column: Expr) -> Index:
        """The index of an element of a matrix that all samples share, unless it is a stack with one for each."""
        return (*_lead(shape), row, column) if _is_one(shape) else self.matrix(shape, row, column)

    def _is_stack(self, shape: tuple[Dim, ...]) -> bool:
        return len(shape) == 3 and shape[0] == self.batch


def _is_one(shape: tuple[Dim, ...]) -> bool:
    return len(shape) == 2 or shape[0] == 1


def _lead(shape: tuple[Dim, ...]) -> Index:
    return (ex.index(0),) * (len(shape) - 2)


def along(name: str, extent: Dim) -> Expr:
    return ex.index(0) if extent == 1 else ex.var(name, extent)


def form_of_view(node: torch.fx.Node, form: Form) -> Form | None:
    """The form of a view of what has ``form``; ``None`` where the view moves elements in other ways."""
    name, source = target_name(node), node.args[0]
    assert isinstance(source, torch.fx.Node)
    index, rank = form.index, len(form.index)
    if name in _SAME:
        return form
    if name in _RESHAPES:
        index = tuple(folded(at) for at in reshape_index(index, shape_of(source), shape_of(node)))
    elif name in ("aten.permute.default", "aten.transpose.int", "aten.t.default"):
        index = tuple(index[d] for d in _order(node, rank))
    elif name == "aten.unsqueeze.default":
        at = int(node.args[1]) % (rank + 1)  # type: ignore[arg-type]
        index = (*index[:at], ex.index(0), *index[at:])
    elif name.startswith("aten.squeeze."):
        dims = _squeezed(node, shape_of(source))
        index = tuple(at for d, at in enumerate(index) if d not in dims)
    elif name == "aten.expand.default":
        return widened(node, source, form)
    else:
        return None
    return Form(index, form.rows, form.columns)


def _order(node: torch.fx.Node, rank: int) -> list[int]:
    given: Any = node.args[1] if len(node.args) > 1 else None
    if target_name(node) == "aten.permute.default":
        return [int(d) % rank for d in given]
    order = list(range(rank))
    if rank > 1:
        first, second = (0, 1) if given is None else (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
        order[first], order[second] = order[second], order[first]
    return order


def _squeezed(node: torch.fx.Node, shape: tuple[Dim, ...]) -> set[int]:
    wanted: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
    dims = [wanted] if isinstance(wanted, int) else wanted
    return {d % len(shape) for d in dims if shape[d % len(shape)] == 1}


def widened(node: torch.fx.Node, source: torch.fx.Node, form: Form) -> Form | None:
    """The form of what ``source`` is broadcast to: a column of a tile may become all of its columns."""
    shape, narrow = shape_of(node), shape_of(source)
    index: list[Expr] = []
    columns = form.columns
    for d, size in enumerate(shape):
        back = d - len(shape) + len(narrow)
        if back >= 0 and narrow[back] == size:
            index.append(form.index[back])
        elif size == 1:
            index.append(ex.index(0))
        elif columns == 1:
            columns = size
            index.append(along(COLUMN, size))
        else:
            return None
    return Form(tuple(index), form.rows, columns)


def whole(frame: Frame, shape: tuple[Dim, ...], rows: Dim, columns: Dim) -> Form:
    """The form of the result of a product."""
    return Form(frame.matrix(shape, along(ROW, rows), along(COLUMN, columns)), rows, columns)


def rows_before(source: torch.fx.Node, dim: int) -> tuple[Dim, int]:
    """Rows that the axes in front of ``dim`` make, and how many they were at compile time."""
    shape = shape_of(source)[:dim]
    seen = math.prod(hint_of(size) for size in tensor_of(source).shape[:dim])
    return shape[0] if len(shape) == 1 else product(shape), seen
