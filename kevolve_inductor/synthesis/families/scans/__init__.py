"""Scans: running sums, products, maxima, minima and log-sums of exponentials along one axis of a tensor."""

from .family import ScansFamily

__all__ = ["ScansFamily"]
