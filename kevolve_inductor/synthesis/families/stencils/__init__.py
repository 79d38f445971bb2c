"""Stencils: depthwise convolutions and pooling in one to three dimensions, and their gradients."""

from .family import StencilsFamily

__all__ = ["StencilsFamily"]
