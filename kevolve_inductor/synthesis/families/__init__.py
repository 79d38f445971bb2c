"""The kernel families, in order of precedence: a later one sees the regions of earlier ones as single calls."""

from __future__ import annotations

from ..family import Family
from .bags import BagsFamily
from .chains import ChainsFamily
from .features import FeaturesFamily, PlacesFamily
from .interaction import InteractionFamily
from .jagged import JaggedFamily
from .pair_gradients import PairGradientsFamily
from .rows import ReductionFamily, RowFamily
from .scans import ScansFamily
from .scatter import ScatterFamily
from .stencils import StencilsFamily

FAMILIES: tuple[Family, ...] = (
    BagsFamily(),
    ChainsFamily(),
    RowFamily(),
    JaggedFamily(),
    ScatterFamily(),
    FeaturesFamily(),
    InteractionFamily(),
    PairGradientsFamily(),
    ScansFamily(),
    StencilsFamily(),
    ReductionFamily(),
    PlacesFamily(),
)
