"""Which neighbours of a row reduction become part of its program: all that goes through the same rows with it."""

from __future__ import annotations

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import shape_of
from ...expression import is_constant, is_expressible, is_view
from ..common import elements
from .address import same
from .assemble import Assembled, producers, taken_from
from .domain import RowDomain
from .grow import Grower, effective_users, fuses, with_items
from .operators import is_reduction, is_selection, reduction_of


class Component(Grower):
    """Grows a program over every pointwise step and reduction that a row's values are connected through.

    What reads the same rows from memory is connected, too. What Inductor would fuse with a reduction is in the program, so
    that a swap keeps nothing apart; sums over all rows of what a program computes anyway (gradients of weights) are taken
    along. It stays between calls that cannot be part of a program (matrix products): ``depths`` counts those before a
    node, and all that grows is as deep as the anchor.
    """

    def __init__(self, graph: torch.fx.Graph, device: str) -> None:
        super().__init__(graph, device)
        self.depths = _depths(graph)

    def stands_alone(self, found: Assembled) -> bool:
        """Whether Inductor would not compute what comes before or after in the same kernel, which a swap would keep apart.

        Numbers of a row or a column do not count: reading them again costs nothing.
        """
        near = [node for node in found.inputs if node.op == "call_function"]
        near += [user for node in found.outputs for user in effective_users(node) if user not in found.nodes]
        depth = max(self.depths[node] for node in found.nodes)
        return not any(self.depths[node] == depth and fuses(node) and _is_wide(node, found) for node in near)

    def _grown(self, anchor: torch.fx.Node, domain: RowDomain, banned: set[torch.fx.Node]) -> set[torch.fx.Node]:
        chosen: set[torch.fx.Node] = set()
        depth = self.depths[anchor]
        of_columns: set[torch.fx.Node] = set()
        stack = [anchor]
        while stack:
            node = stack.pop()
            if node in chosen or node in banned or self.depths[node] != depth or not _joins(node, domain, of_columns):
                continue
            members = with_items(node)
            chosen |= members
            if _sums_columns(node, domain) or not of_columns.isdisjoint(producers(node)):
                of_columns |= members
            for member in members:
                sources = list(producers(member))
                stack += [*sources, *effective_users(member), *taken_from(member)]
                stack += [user for source in sources if domain.is_whole(source) for user in effective_users(source)]
        self._inline(chosen, banned)
        return chosen

    def _inline(self, chosen: set[torch.fx.Node], banned: set[torch.fx.Node]) -> None:
        """Swallow what only the program needs, whatever its shape: casts of weights, numbers that all rows share."""
        for node in self._sorted({source for member in chosen for source in producers(member)})[::-1]:
            stack = [node]
            while stack:
                current = stack.pop()
                if current in chosen or current in banned or not is_expressible(current) or is_view(current):
                    continue
                users = list(effective_users(current))
                if users and all(user in chosen for user in users):
                    chosen.add(current)
                    stack += producers(current)


def _depths(graph: torch.fx.Graph) -> dict[torch.fx.Node, int]:
    """The most calls that no program can hold on any way to a node."""
    depths: dict[torch.fx.Node, int] = {}
    for node in graph.nodes:
        depths[node] = max((depths[source] + _is_barrier(source) for source in node.all_input_nodes), default=0)
    return depths


def _is_barrier(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and not (fuses(node) or is_view(node) or is_constant(node) or taken_from(node))


def _is_wide(node: torch.fx.Node, found: Assembled) -> bool:
    """Whether a node's values, or what it reads, are as many as the program's rows and columns."""
    whole = max(elements(one) for one in (*found.inputs, *found.outputs))
    return any(elements(one) >= whole for one in (node, *producers(node)))


def _joins(node: torch.fx.Node, domain: RowDomain, of_columns: set[torch.fx.Node]) -> bool:
    if taken_from(node):
        return _joins(taken_from(node)[0], domain, of_columns)
    if is_selection(node):
        return False
    if is_reduction(node):
        return bool(_direction(node, domain))
    if not is_expressible(node) or is_view(node) or is_constant(node):
        return False
    shape = shape_of(node)
    if not of_columns.isdisjoint(producers(node)):
        return same(product(shape), domain.columns)
    return _is_of_rows(product(shape), product(domain.dims), domain.columns)


def _is_of_rows(size: Dim, rows: Dim, columns: int) -> bool:
    """Whether a tensor of ``size`` elements may have one for every row, every column, or every run of columns in a row."""
    if isinstance(size, int) and isinstance(rows, int):
        return rows > 0 and size > 0 and size % rows == 0 and rows * columns % size == 0
    return same(size, rows) or same(size, product((rows, columns)))


def _sums_columns(node: torch.fx.Node, domain: RowDomain) -> bool:
    return is_reduction(node) and not is_selection(node) and _direction(node, domain) == "across"


def _direction(node: torch.fx.Node, domain: RowDomain) -> str:
    try:
        return domain.runs(reduction_of(node))
    except UnsupportedError:
        return ""
