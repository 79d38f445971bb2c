"""Feature preprocessing: many small bucketize, hash, clip and cast chains over many features, done in one launch."""

from .family import FeaturesFamily
from .places import PlacesFamily

__all__ = ["FeaturesFamily", "PlacesFamily"]
