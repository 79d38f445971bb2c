"""The record of one search as a tree: what was asked, from which parents, and how it did.

Policies read it; nothing in it depends on one. A policy that needs visits or values of subtrees can walk ``children``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .searcher import Candidate


@dataclass
class Node:
    """A candidate in the tree. ``score`` is ``None`` until it was told."""

    candidate: Candidate
    score: float | None = None
    children: list[int] = field(default_factory=list)

    @property
    def fitness(self) -> float:
        return self.score or 0.0


class Tree:
    """Nodes by candidate id, in the order they were asked."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def node(self, candidate_id: int) -> Node:
        return self._nodes[candidate_id]

    def add(self, candidate: Candidate) -> None:
        """Raises ``ValueError`` where the id is not the next one."""
        if candidate.id != len(self._nodes):
            raise ValueError(f"candidate {candidate.id} where {len(self._nodes)} comes next")
        self._nodes.append(Node(candidate))
        for parent in dict.fromkeys(candidate.parents):
            self._nodes[parent].children.append(candidate.id)

    def tell(self, candidate: Candidate, score: float) -> None:
        """Raises ``ValueError`` for a candidate not in the tree, one told before, or a score that is no fitness."""
        if not math.isfinite(score) or score < 0:
            raise ValueError(f"a score is a finite number that is at least 0, not {score!r}")
        if not 0 <= candidate.id < len(self._nodes) or self._nodes[candidate.id].candidate != candidate:
            raise ValueError(f"candidate {candidate.id} was not asked")
        node = self._nodes[candidate.id]
        if node.score is not None:
            raise ValueError(f"candidate {candidate.id} was told before")
        node.score = score

    def ranked(self) -> list[Node]:
        """Nodes that succeeded, the fittest first, the earlier one on a tie."""
        return sorted((node for node in self._nodes if node.fitness > 0), key=lambda node: -node.fitness)


class Selection(Protocol):
    """A selection policy: which nodes to expand next."""

    def select(self, tree: Tree, count: int, rng: random.Random) -> tuple[Node, ...]:
        """``count`` different nodes that succeeded, or fewer where there are not so many. All chance is ``rng``'s."""
        ...
