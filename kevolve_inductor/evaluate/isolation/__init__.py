"""Cutting worker processes off from the user's machine: limits, refused system calls, confined files."""

from .levels import MEMORY_SHARE, Isolation, Level, isolate

__all__ = ["MEMORY_SHARE", "Isolation", "Level", "isolate"]
