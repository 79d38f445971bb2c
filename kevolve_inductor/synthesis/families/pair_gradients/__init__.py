"""The gradient of a dot interaction: gradients of single products, by pairs of rows, back to the rows."""

from .family import PairGradientsFamily

__all__ = ["PairGradientsFamily"]
