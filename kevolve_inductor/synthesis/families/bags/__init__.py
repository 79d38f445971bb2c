"""Embedding bags: rows of tables gathered by index and pooled, many tables in one kernel."""

from .family import BagsFamily

__all__ = ["BagsFamily"]
