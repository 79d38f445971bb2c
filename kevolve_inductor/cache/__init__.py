"""What was learnt, kept: cache keys, and the store they are looked up in."""

from .entry import Entry, TrialRow, Verdict
from .key import CacheKey, cache_key, differences
from .store import Store

__all__ = ["CacheKey", "Entry", "Store", "TrialRow", "Verdict", "cache_key", "differences"]
