"""Jagged tensors: rows of different length, cut or padded to dense ones, pooled, or summed by offsets."""

from .family import JaggedFamily

__all__ = ["JaggedFamily"]
