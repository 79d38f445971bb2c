"""Row selection: top-k, sort and arg-max with what surrounds them along a row, as programs over rows."""

from .rows import RowFamily

__all__ = ["RowFamily"]
