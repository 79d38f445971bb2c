"""Which neighbours of a selection become part of its row program."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import shape_of, target_name
from ...expression import is_constant, is_expressible, is_view
from .address import same
from .assemble import Assembled, BlockedError, assemble, producers, taken_from
from .domain import RowDomain
from .operators import Reduction, Selection, is_reduction, is_selection, reduction_of, selection_of

_ROUNDS = 4
_ATTEMPTS = 24
_MOST_INPUTS = 12
_MOST_OUTPUTS = 8


class Grower:
    """Positions of a graph's nodes and what follows from them; one instance serves all selections of a graph."""

    def __init__(self, graph: torch.fx.Graph, device: str) -> None:
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.device = device

    def program_of(self, anchor: torch.fx.Node) -> Assembled:
        """The largest program around ``anchor`` that can be expressed. Raises ``UnsupportedError``."""
        domain = RowDomain.of(anchor)
        banned: set[torch.fx.Node] = set()
        for _ in range(_ATTEMPTS):
            chosen = self._grown(anchor, domain, banned)
            blocked = self._cyclic(chosen) or self._crowded(chosen, anchor)
            if blocked is None:
                try:
                    return assemble(domain, self._sorted(chosen), self.device)
                except BlockedError as error:
                    blocked = error.node
                    if blocked is anchor:
                        raise
            if blocked is anchor:
                break
            banned.add(blocked)
        raise UnsupportedError("structure", f"what surrounds {anchor} has no order that one kernel can follow")

    def _sorted(self, nodes: Iterable[torch.fx.Node]) -> list[torch.fx.Node]:
        return sorted(nodes, key=self.order.__getitem__)

    def _grown(self, anchor: torch.fx.Node, domain: RowDomain, banned: set[torch.fx.Node]) -> set[torch.fx.Node]:
        chosen = {member for node in _siblings(anchor) if node not in banned for member in with_items(node)}
        for _ in range(_ROUNDS):
            before = len(chosen)
            self._backwards(chosen, domain, banned)
            self._forwards(chosen, domain, banned)
            if len(chosen) == before:
                break
        self._prune(chosen)
        return chosen

    def _prune(self, chosen: set[torch.fx.Node]) -> None:
        """Give back pointwise results that their users would compute on the way from values that are written anyway."""
        for node in reversed(self._sorted(chosen)):
            if node in chosen and all(user not in chosen and fuses(user) for user in effective_users(node)):
                chosen.difference_update(_spare(node, chosen))

    # --- producers ---

    def _backwards(self, chosen: set[torch.fx.Node], domain: RowDomain, banned: set[torch.fx.Node]) -> None:
        """Swallow producers that nobody else needs, and row reductions with what is computed from them."""
        heap = [(-self.order[node], node.name, node) for member in chosen for node in producers(member)]
        heapq.heapify(heap)
        seen: set[torch.fx.Node] = set()
        while heap:
            _, _, node = heapq.heappop(heap)
            if node in seen:
                continue
            seen.add(node)
            node_and_source = {node, *taken_from(node)}
            if node in banned or node_and_source & banned or not _may_join(node, domain):
                continue
            if node not in chosen and not self._is_swallowed(node, chosen, domain):
                continue
            for member in node_and_source - chosen:
                chosen.update(with_items(member))
            for producer in (p for member in node_and_source for p in producers(member)):
                heapq.heappush(heap, (-self.order[producer], producer.name, producer))

    def _is_swallowed(self, node: torch.fx.Node, chosen: set[torch.fx.Node], domain: RowDomain) -> bool:
        users = list(effective_users(node))
        if users and all(user in chosen for user in users):
            return True
        # Needed elsewhere too, it must be written anyway; loading it instead would leave its row reductions outside.
        return _is_row_shaped(node, domain) and _leads_to_reduction(node, domain)

    # --- users ---

    def _forwards(self, chosen: set[torch.fx.Node], domain: RowDomain, banned: set[torch.fx.Node]) -> None:
        heap = [(self.order[user], user.name, user) for node in chosen for user in effective_users(node)]
        heapq.heapify(heap)
        seen: set[torch.fx.Node] = set()
        while heap:
            _, _, node = heapq.heappop(heap)
            if node in seen or node in chosen:
                continue
            seen.add(node)
            if node in banned or node.op != "call_function" or not self._may_follow(node, chosen, domain):
                continue
            members = with_items(node)
            chosen.update(members)
            for user in (user for member in members for user in effective_users(member)):
                heapq.heappush(heap, (self.order[user], user.name, user))

    def _may_follow(self, node: torch.fx.Node, chosen: set[torch.fx.Node], domain: RowDomain) -> bool:
        """Selections and reductions along the rows; pointwise results, wide ones only if they read nothing new."""
        if not _may_join(node, domain):
            return False
        if is_selection(node) or is_reduction(node):
            return True
        sizes = {1, domain.columns, *(_count(member) for member in chosen if is_selection(member))}
        if not any(_fits(shape_of(node), size, domain) for size in sizes):
            return False
        if not _fits(shape_of(node), domain.columns, domain):
            return True
        read = {source for member in chosen for source in producers(member)}
        return all(
            source in read or source in chosen or not _is_row_shaped(source, domain) for source in producers(node)
        )

    def _crowded(self, chosen: set[torch.fx.Node], anchor: torch.fx.Node) -> torch.fx.Node | None:
        """A member to leave out where a program would read or write too many tensors."""
        sources = {source for node in chosen for source in producers(node)} - chosen
        leaving = {node for node in chosen if any(user not in chosen for user in effective_users(node))}
        if len(sources) <= _MOST_INPUTS and len(leaving) <= _MOST_OUTPUTS:
            return None
        spare = [node for node in self._sorted(chosen) if node is not anchor and not taken_from(node)]
        written = [node for node in spare if node in leaving]
        candidates = written or spare
        return candidates[-1] if candidates else None

    # --- convexity ---

    def _cyclic(self, chosen: set[torch.fx.Node]) -> torch.fx.Node | None:
        """A member with an operand that is computed outside from another member; the last such one."""
        first = min(self.order[node] for node in chosen)
        tainted: dict[torch.fx.Node, bool] = {}
        for node in reversed(self._sorted(chosen)):
            if any(
                self._depends(operand, chosen, first, tainted) for operand in producers(node) if operand not in chosen
            ):
                return node
        return None

    def _depends(
        self, start: torch.fx.Node, chosen: set[torch.fx.Node], first: int, known: dict[torch.fx.Node, bool]
    ) -> bool:
        """Whether ``start``, which is outside, is computed from a member; nothing before ``first`` is."""
        stack = [start]
        while stack:
            node = stack[-1]
            if node in known:
                stack.pop()
                continue
            if self.order[node] < first:
                known[node] = False
                continue
            sources = node.all_input_nodes
            open_sources = [source for source in sources if source not in known and source not in chosen]
            if open_sources:
                stack.extend(open_sources)
            else:
                known[node] = any(source in chosen or known[source] for source in sources)
        return known[start]


def _siblings(anchor: torch.fx.Node) -> list[torch.fx.Node]:
    """``anchor`` and the other selections of the same values along the same axis."""
    if not is_selection(anchor):
        return [anchor]
    asked = selection_of(anchor)
    found = [anchor]
    for user in asked.source.users:
        if user is not anchor and is_selection(user):
            try:
                other = selection_of(user)
            except UnsupportedError:
                continue
            if other.dim == asked.dim:
                found.append(user)
    return found


def with_items(node: torch.fx.Node) -> set[torch.fx.Node]:
    """A node and, where it gives several values, the nodes that take them out."""
    return {node, *(user for user in node.users if target_name(user) == "getitem" and taken_from(user))}


def _spare(node: torch.fx.Node, chosen: set[torch.fx.Node]) -> list[torch.fx.Node]:
    """A pointwise result with the chain of such before it, down to values that leave anyway; empty if it ends elsewhere."""
    chain: list[torch.fx.Node] = []
    while not (is_selection(node) or is_reduction(node) or taken_from(node)):
        chain.append(node)
        operands = {operand for operand in producers(node) if operand in chosen}
        if operands and all(any(u not in chosen for u in effective_users(operand)) for operand in operands):
            return chain
        if len(operands) != 1:
            return []
        (node,) = operands
        if any(user not in chain for user in effective_users(node)):
            return []
    return []


def fuses(node: torch.fx.Node) -> bool:
    """Whether Inductor computes a node together with the pointwise steps before it."""
    return is_expressible(node) or is_reduction(node) or target_name(node).split(".")[1:2] in (["any"], ["all"])


def effective_users(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """Users, seen through views; a view that leaves the graph or feeds something else counts by its users."""
    stack = list(node.users)
    while stack:
        user = stack.pop()
        if is_view(user) and not taken_from(user):
            stack.extend(user.users)
        else:
            yield user


def _may_join(node: torch.fx.Node, domain: RowDomain) -> bool:
    """Whether a node is of a kind that programs hold and, for what runs along an axis, along these rows."""
    if taken_from(node):
        return _may_join(taken_from(node)[0], domain)
    if is_selection(node) or is_reduction(node):
        return _along(node, domain) is not None
    return is_expressible(node) and not is_view(node) and not is_constant(node)


def _along(node: torch.fx.Node, domain: RowDomain) -> Selection | Reduction | None:
    try:
        asked: Selection | Reduction = selection_of(node) if is_selection(node) else reduction_of(node)
    except UnsupportedError:
        return None
    if isinstance(asked, Reduction) and domain.runs(asked) == "across":
        return None
    shape = shape_of(asked.source)
    rest = tuple(size for axis, size in enumerate(shape) if axis not in asked.dims)
    return asked if same(product(rest), product(domain.dims)) else None


def _count(node: torch.fx.Node) -> int:
    return selection_of(node).count


def _fits(shape: tuple[Dim, ...], size: int, domain: RowDomain) -> bool:
    """Whether a tensor of ``shape`` has ``size`` elements for every row."""
    return same(product(shape), product((*domain.dims, size)))


def _is_row_shaped(node: torch.fx.Node, domain: RowDomain) -> bool:
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    return any(_fits(shape_of(node), size, domain) for size in {1, domain.columns})


def _leads_to_reduction(node: torch.fx.Node, domain: RowDomain) -> bool:
    """Whether a value is computed, through pointwise steps, from a reduction along the rows."""
    stack, seen = [node], set[torch.fx.Node]()
    while stack and len(seen) < 64:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        source = taken_from(current)[0] if taken_from(current) else current
        if is_reduction(source):
            if _along(source, domain) is not None:
                return True
        elif is_expressible(current) and not is_selection(current):
            stack.extend(producers(current))
    return False
