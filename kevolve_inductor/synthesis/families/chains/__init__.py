"""Small matrix products one after another, whose intermediate values never leave the chip, and pooled interactions."""

from .family import ChainsFamily

__all__ = ["ChainsFamily"]
