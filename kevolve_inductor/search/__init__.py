"""Which schedule to try next, and when to stop: no torch, no triton, no clock."""

from .budget import Budget, StopReason
from .evolution import EvolutionSearcher, Tournament
from .searcher import Candidate, Memory, Origin, Searcher, Space
from .tree import Node, Selection, Tree

__all__ = [
    "Budget", "Candidate", "EvolutionSearcher", "Memory", "Node", "Origin", "Searcher", "Selection", "Space",
    "StopReason", "Tournament", "Tree",
]  # fmt: skip
