"""Scatters: rows added to places that data name, as sums by segment and gradients of tables are."""

from .family import ScatterFamily

__all__ = ["ScatterFamily"]
