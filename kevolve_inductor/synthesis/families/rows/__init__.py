"""Rows: selections (top-k, sort, arg-max) and reductions with what surrounds them along a row, as programs over rows."""

from .rows import ReductionFamily, RowFamily

__all__ = ["ReductionFamily", "RowFamily"]
