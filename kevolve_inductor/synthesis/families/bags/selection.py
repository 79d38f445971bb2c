"""Which nodes of a graph pool gathered rows, and what of the graph may join them in one kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.fx

from ....graph.meta import shape_of, target_name, tensor_of
from ...expression import is_constant, is_expressible, is_pointwise, is_view
from ..common import elements
from .plan import Combine

POOLS: dict[str, Combine] = {"aten.sum.dim_IntList": "add", "aten.mean.dim": "add", "aten.amax.default": "maximum",
                             "aten.amin.default": "minimum"}  # fmt: skip
# A sum of weighted rows, as a product of one row (or column) of weights with them.
PRODUCT = "aten.bmm.default"
# A row's maximum, and the sum of exponentials below it.
PREPARED = "prims.prepare_softmax_online.default"
BAGS = ("aten._embedding_bag_forward_only.default", "aten._embedding_bag.default")
_GATHERS = ("aten.embedding.default", "aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.index_select.default")
# Steps from a reduction to the gather that it pools: masks, weights, casts, views.
_LONGEST_WAY = 24
# A producer that others read too is computed again rather than read if it takes no more steps than this.
_LONGEST_RECOMPUTED = 4


def is_tensor(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def cores_of(graph: torch.fx.Graph, device: str) -> set[torch.fx.Node]:
    """Results of embedding bags, and reductions of gathered rows."""
    gathered = [node for node in graph.nodes if target_name(node) in _GATHERS and is_tensor(node)]
    found = {node for node in graph.nodes if _is_bag(node)}
    if gathered:
        pools = [node for node in graph.nodes if target_name(node) in POOLS and _is_gathered(node.args[0])]
        found.update(pools, (node for node in graph.nodes if _weighs_gathered(node)))
    return {node for node in found if tensor_of(node).device.type == device}


def _is_bag(node: torch.fx.Node) -> bool:
    """The first result of an embedding bag, the others being unused."""
    if target_name(node) != "getitem" or node.args[1] != 0:
        return False
    bag: Any = node.args[0]
    return target_name(bag) in BAGS and len(bag.users) == 1


def _weighs_gathered(node: torch.fx.Node) -> bool:
    """Whether a product adds up gathered rows by the weights of one row, or of one column."""
    if target_name(node) != PRODUCT or not is_tensor(node):
        return False
    left, right = node.args[:2]
    _, rows, columns = shape_of(node)
    return (rows == 1 and _is_gathered(right)) or (columns == 1 and rows != 1 and _is_gathered(left))


def _is_gathered(value: Any) -> bool:
    open_nodes: list[Any] = [value]
    for _ in range(_LONGEST_WAY):
        if not open_nodes:
            return False
        current = open_nodes.pop(0)
        if not is_tensor(current):
            continue
        if target_name(current) in _GATHERS:
            return True
        if is_pointwise(current) or is_view(current):
            open_nodes += current.all_input_nodes
    return False


def members_of(graph: torch.fx.Graph, cores: set[torch.fx.Node]) -> set[torch.fx.Node]:
    """``cores`` and what is computed pointwise from them without growing; concatenations where they are most of it."""
    members: set[torch.fx.Node] = set(cores)
    for node in graph.nodes:
        if node in members or not is_tensor(node) or not any(source in members for source in node.all_input_nodes):
            continue
        if is_expressible(node) and elements(node) < math.inf and _continues(node, members):
            members.add(node)
    for node in reversed(graph.nodes):
        # A view that no member reads is left outside: it costs nothing there.
        if node in members and is_view(node) and node not in cores and members.isdisjoint(node.users):
            members.discard(node)
    return members


def _continues(node: torch.fx.Node, members: set[torch.fx.Node]) -> bool:
    if is_view(node):
        return target_name(node) != "aten.expand.default"
    if target_name(node) == "aten.cat.default":
        parts: Any = node.args[0]
        return 2 * sum(elements(part) for part in parts if part in members) >= elements(node)
    sources = [source for source in node.all_input_nodes if source in members]
    return is_pointwise(node) and elements(node) <= max(elements(source) for source in sources)


def inlinable(
    graph: torch.fx.Graph,
    members: set[torch.fx.Node],
    cores: set[torch.fx.Node],
    others: set[torch.fx.Node],
    early: bool,
) -> tuple[set[torch.fx.Node], set[torch.fx.Node]]:
    """``members`` with the producers that are computed inside; and of these the reductions, such as counts of a mask.

    Unless ``early``, only what comes after the pooling may need the result of such a reduction; else what is pooled may
    as well, as weights that sum to one do.

    Producers are views, constants, what only the region needs, and short chains that others need as well; ``others``
    belong to other regions.
    """
    inside = members | {call for node in members & cores for call in node.all_input_nodes if target_name(call) in BAGS}
    counts: set[torch.fx.Node] = set()
    late = members - cores
    steps = dict.fromkeys(inside, 0)
    for node in reversed(graph.nodes):
        users = [user for user in node.users if user in inside]
        if node in inside or node in others or not users or not is_tensor(node):
            continue
        alone = len(users) == len(node.users)
        is_late = late.issuperset(users)
        weights = _weights_of(node) if early else set()
        outside = {user for part in weights for user in part.users} - weights
        if weights and outside <= inside:
            counts |= {part for part in weights if is_tensor(part)}
            inside |= weights
            steps |= dict.fromkeys(weights, 1 + max(steps[user] for user in outside))
        elif (is_late or early) and target_name(node) in POOLS and alone and _is_count(node, node.args[0]):
            counts.add(node)
            inside.add(node)
        elif is_late:
            late.add(node)
        own = int(not (is_view(node) or is_constant(node)))
        steps[node] = own + max(steps[user] for user in users)
        cheap = alone or not own or (is_pointwise(node) and steps[node] <= _LONGEST_RECOMPUTED)
        if is_expressible(node) and target_name(node) != "aten.cat.default" and cheap:
            inside.add(node)
    return inside, counts


def _weights_of(node: torch.fx.Node) -> set[torch.fx.Node]:
    """The operator that prepares weights and its two numbers per bag, if ``node`` is one of these."""
    source: Any = node.args[0] if target_name(node) == "getitem" else None
    prepares = source is not None and target_name(source) == PREPARED and _is_count(node, source.args[0])
    return {source, *source.users} if prepares else set()


def _is_count(node: torch.fx.Node, source: Any) -> bool:
    """Whether ``node``, a reduction of ``source``, is one number per bag: of a mask or of weights, which have no rows."""
    shape = [size for size in shape_of(source) if size != 1]
    kept = [size for size in shape_of(node) if size != 1]
    return is_tensor(source) and len(kept) < len(shape) <= 2
