"""Regions that grow around one operator each, found in a graph one after another: what scans and stencils share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.fx

from ...exc import UnsupportedError
from ..family import Match, Rejection


class Surroundings:
    """What of a graph may join a region, and is not part of one found before."""

    def __init__(self, graph: torch.fx.Graph, is_core: Callable[[torch.fx.Node], bool]) -> None:
        self.graph = graph
        self._taken: set[torch.fx.Node] = set()
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._after: set[torch.fx.Node] = set()
        for node in graph.nodes:
            if is_core(node) or any(source in self._after for source in node.all_input_nodes):
                self._after.add(node)

    def take(self, nodes: Iterable[torch.fx.Node], outputs: Iterable[torch.fx.Node]) -> None:
        """From now on ``nodes`` are a region; what others need as well (views, constants) they may compute again."""
        inside, written = set(nodes), set(outputs)
        self._taken.update(node for node in inside if node in written or inside.issuperset(node.users))

    def _is_ready(self, node: torch.fx.Node, core: torch.fx.Node) -> bool:
        return node not in self._after or self._order[node] < self._order[core]


Around = TypeVar("Around", bound=Surroundings)


def cores_of(
    graph: torch.fx.Graph, is_core: Callable[[torch.fx.Node], bool], device: str
) -> list[torch.fx.Node]:  # fmt: skip
    return [node for node in graph.nodes if is_core(node) and _device_of(node) == device]


def regions_around(
    cores: Iterable[torch.fx.Node], around: Around, device: str, family: str,
    match_of: Callable[[Around, torch.fx.Node, str, bool], Match], unfit: Callable[[Match], Rejection | None],
) -> Iterator[Match | Rejection]:  # fmt: skip
    """One result per core. ``match_of`` is asked again to do with the core alone where more than that is not supported."""
    for core in cores:
        found: Match | Rejection
        try:
            found = _widest(around, core, device, match_of)
        except UnsupportedError as error:
            found = Rejection(error.code, error.message, family, (core,))  # type: ignore[arg-type]
        else:
            found = unfit(found) or found
        if isinstance(found, Match):
            around.take(found.nodes, found.outputs)
        yield found


def _widest(
    around: Around, core: torch.fx.Node, device: str, match_of: Callable[[Around, torch.fx.Node, str, bool], Match]
) -> Match:  # fmt: skip
    try:
        return match_of(around, core, device, False)
    except UnsupportedError:
        return match_of(around, core, device, True)


def _device_of(core: torch.fx.Node) -> str:
    value = core.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return next((one.device.type for one in values if isinstance(one, torch.Tensor)), "")
