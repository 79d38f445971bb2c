"""The kernel families, in order of precedence: a later one sees the regions of earlier ones as single calls."""

from __future__ import annotations

from ..family import Family
from .features import FeaturesFamily
from .interaction import InteractionFamily
from .jagged import JaggedFamily
from .rows import RowFamily
from .scans import ScansFamily

FAMILIES: tuple[Family, ...] = (
    RowFamily(),
    JaggedFamily(),
    FeaturesFamily(),
    InteractionFamily(),
    ScansFamily(),
)
