"""Which rows and columns a program runs over, and where they lie in tensors of any shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import shape_of
from ...expression import expression as ex
from ...expression.builder import Index
from ...expression.expression import Expr
from ...expression.views import reshape_index
from .address import same
from .operators import Reduction, Selection, extent, is_selection, reduction_of, selection_of
from .program import COLUMNS


@dataclass(frozen=True)
class RowDomain:
    """A tensor's ``shape`` taken apart: the axes ``along`` are the columns, all others the rows."""

    shape: tuple[Dim, ...]
    along: tuple[int, ...]

    @classmethod
    def of(cls, node: torch.fx.Node) -> RowDomain:
        """Of a selection or reduction node. Raises ``UnsupportedError``."""
        asked: Selection | Reduction = selection_of(node) if is_selection(node) else reduction_of(node)
        sizes = [extent(node, asked.source, dim) for dim in asked.dims]
        if 0 in sizes:
            raise UnsupportedError("size", f"{node} runs along an empty axis")
        return cls(shape_of(asked.source), asked.dims)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """Extents of the rows."""
        return _without(self.shape, self.along)

    @property
    def columns(self) -> int:
        return int(product(tuple(self.shape[dim] for dim in self.along)))

    @property
    def column(self) -> Expr:
        return ex.var(COLUMNS, self.columns)

    @property
    def variables(self) -> tuple[tuple[str, Dim], ...]:
        return tuple((f"r{k}", dim) for k, dim in enumerate(self.dims) if dim != 1)

    @property
    def index(self) -> Index:
        return tuple(ex.index(0) if dim == 1 else ex.var(f"r{k}", dim) for k, dim in enumerate(self.dims))

    def index_of(self, shape: tuple[Dim, ...], axes: tuple[int, ...], position: Expr | None) -> Index | None:
        """The current row's index into a tensor of ``shape`` of which ``axes`` alone, together, are not of the rows."""
        rest = _without(shape, axes)
        if rest == self.dims:
            index = self.index
        elif same(product(rest), product(self.dims)):
            index = reshape_index(self.index, self.dims, rest)
        else:
            return None
        if not axes:
            return index
        assert position is not None
        sizes = tuple(shape[axis] for axis in axes)
        at, rows = iter(reshape_index((position,), (product(sizes),), sizes)), iter(index)
        return tuple(next(at) if axis in axes else next(rows) for axis in range(len(shape)))

    def whole_index(self, shape: tuple[Dim, ...]) -> Index | None:
        """Where the current row and column lie in a tensor of ``shape`` that is this one's elements in the same order."""
        if not same(product(shape), product(self.shape)):
            return None
        index = self.index_of(self.shape, self.along, self.column)
        assert index is not None
        return index if shape == self.shape else reshape_index(index, self.shape, shape)

    def is_whole(self, node: torch.fx.Node) -> bool:
        """Whether a tensor has one element for every row and column."""
        return isinstance(node.meta.get("val"), torch.Tensor) and same(product(shape_of(node)), product(self.shape))

    def column_index(self, shape: tuple[Dim, ...]) -> Index | None:
        """Where the current column lies in a tensor of ``shape`` that has one element for every column."""
        if product(shape) != self.columns:
            return None
        return reshape_index((self.column,), (self.columns,), shape)

    def runs(self, asked: Reduction) -> str:
        """``"along"`` the rows, ``"across"`` them (one result for every column), or neither: the empty string."""
        index = self.whole_index(shape_of(asked.source))
        if index is None:
            return ""
        reduced = [ex.variables(index[dim]) for dim in asked.dims]
        left = [ex.variables(at) for dim, at in enumerate(index) if dim not in asked.dims]
        if all(names <= {COLUMNS} for names in reduced) and not any(COLUMNS in names for names in left):
            return "along"
        if all(names <= {COLUMNS} for names in left) and not any(COLUMNS in names for names in reduced):
            return "across"
        return ""

    def places(self, shape: tuple[Dim, ...], size: int) -> list[int]:
        """Axes of ``shape`` that may be the one of ``size`` positions, the last first."""
        return [
            at
            for at in reversed(range(len(shape)))
            if shape[at] == size and self.index_of(shape, (at,), ex.index(0)) is not None
        ]


def _without(shape: tuple[Dim, ...], axes: tuple[int, ...]) -> tuple[Dim, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)
