"""Dot interaction: the products of a sample's features with each other, beside what else goes into the next layer."""

from .family import InteractionFamily

__all__ = ["InteractionFamily"]
