"""The kernel families, in order of precedence: where two claim the same node, the earlier one has it."""

from __future__ import annotations

from ..family import Family
from .features import FeaturesFamily
from .interaction import InteractionFamily

FAMILIES: tuple[Family, ...] = (
    InteractionFamily(),
    FeaturesFamily(),
)
