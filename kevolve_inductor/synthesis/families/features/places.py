"""Rows of which one place is written by index, and what is computed from them element by element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....graph.meta import target_name
from ...expression import writes_one_place
from ...family import Match, Rejection
from .. import common
from .family import FeaturesFamily
from .selection import members_of

# What stays in a cache is written twice at little cost.
LEAST_PLACED = 1 << 20


class PlacesFamily(FeaturesFamily):
    """The gradient of picking one element of each row, as cross-entropy spelled by hand has it: others write it into zeros
    with atomic operations, and add these to the rest.

    It comes after the families that compute such a choice together with a reduction.
    """

    name: ClassVar[str] = "places"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        members = members_of(graph, device, lambda node, varying: node in varying and _is_scattered(node))
        yield from self.regions(graph, device, members)

    def why_not(self, match: Match, device: str) -> Rejection | None:
        total = sum(common.elements(node) for node in match.outputs)
        if total >= LEAST_PLACED:
            return None
        return Rejection("size", f"{total:g} elements are written as fast apart", match.family, match.nodes)


def _is_scattered(node: torch.fx.Node) -> bool:
    """Whether the place is named by data: a fixed one Inductor computes with what surrounds it."""
    return writes_one_place(node) and target_name(node) != "aten.select_scatter.default"
