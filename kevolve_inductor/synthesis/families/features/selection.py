"""Which nodes of a graph are feature preprocessing, and how they fall into regions that one kernel can compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.fx

from ....graph.meta import target_name, tensor_of
from ...expression import is_constant, is_expressible, is_pointwise, is_view
from ..common import elements

SEARCHES = ("aten.bucketize.Tensor", "aten.searchsorted.Tensor")
_DIVISIONS = ("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.fmod.Tensor", "aten.fmod.Scalar",
              "aten.floor_divide.default", "aten.floor_divide.Scalar", "aten.div.Tensor_mode",
              "aten.div.Scalar_mode")  # fmt: skip
_MIXING = ("aten.bitwise_xor.Tensor", "aten.bitwise_xor.Scalar", "aten.__lshift__.Scalar", "aten.__rshift__.Scalar",
           "aten.__lshift__.Tensor", "aten.__rshift__.Tensor", "aten.bitwise_left_shift.Tensor",
           "aten.bitwise_left_shift.Tensor_Scalar", "aten.bitwise_right_shift.Tensor",
           "aten.bitwise_right_shift.Tensor_Scalar")  # fmt: skip
_INDEXED_READS = ("aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.gather.default", "aten.index_select.default",
                  "aten.embedding.default")  # fmt: skip
_WIDE_INTEGERS = (torch.int64, torch.int32)

# A table that is read by computed index is swallowed if it is no larger than a level-2 cache holds.
_LARGEST_TABLE = 2**16
# A producer with users elsewhere is computed twice rather than written if it takes no more steps than this.
_LONGEST_RECOMPUTED = 8
# Work below this many elements is not worth a kernel of its own.
LEAST_ELEMENTS = 1024


def is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_trigger(node: torch.fx.Node, varying: set[torch.fx.Node]) -> bool:
    """A search, or integer arithmetic that mixes bits: what Inductor is slow at. Index arithmetic on constants is not."""
    name = target_name(node)
    if node not in varying or not is_tensor(node):
        return False
    if name in SEARCHES:
        return True
    return name in _DIVISIONS + _MIXING and tensor_of(node).dtype in _WIDE_INTEGERS


def varying_nodes(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Nodes whose value depends on an input of the graph."""
    varying: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr") or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    return varying


def members_of(
    graph: torch.fx.Graph, device: str, is_trigger: Callable[[torch.fx.Node, set[torch.fx.Node]], bool]
) -> set[torch.fx.Node]:
    """Triggers, which are told the nodes that vary, and what is computed pointwise from them without growing."""
    varying = varying_nodes(graph)
    members: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if not is_tensor(node) or tensor_of(node).device.type != device or not is_expressible(node):
            continue
        if elements(node) == math.inf:
            continue
        if is_trigger(node, varying) or (any(s in members for s in node.all_input_nodes) and _continues(node, members)):
            members.add(node)
    return _without_trailing_views(graph, members)


def _continues(node: torch.fx.Node, members: set[torch.fx.Node]) -> bool:
    if is_view(node):
        return target_name(node) != "aten.expand.default"
    if target_name(node) == "aten.cat.default":
        parts: list[torch.fx.Node] = node.args[0]  # type: ignore[assignment]
        inside = sum(elements(part) for part in parts if part in members)
        return 2 * inside >= elements(node)
    if not is_pointwise(node):
        return target_name(node) in _INDEXED_READS and _is_small_lookup(node, members)
    return elements(node) <= max(elements(s) for s in node.all_input_nodes if s in members)


def _is_small_lookup(node: torch.fx.Node, members: set[torch.fx.Node]) -> bool:
    source = node.args[0]
    if not isinstance(source, torch.fx.Node) or not is_tensor(source) or target_name(node) == "aten.embedding.default":
        return False
    indices = [n for n in node.all_input_nodes if n is not source]
    computed = [n for n in indices if n in members]
    if not computed:
        return source in members
    grows = elements(node) > max(elements(n) for n in computed)
    return not grows and source not in members and elements(source) <= _LARGEST_TABLE


def _without_trailing_views(graph: torch.fx.Graph, members: set[torch.fx.Node]) -> set[torch.fx.Node]:
    """A view that no member reads is left outside: it costs nothing there."""
    kept = set(members)
    for node in reversed(graph.nodes):
        if node in kept and is_view(node) and not any(user in kept for user in node.users):
            kept.discard(node)
    return kept


def levels(graph: torch.fx.Graph, members: set[torch.fx.Node]) -> list[list[torch.fx.Node]]:
    """Members by how often the way to them leaves the members: those of one level cannot wait for one another."""
    depth: dict[torch.fx.Node, int] = {}
    found: dict[int, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        inside = node in members
        depths = [depth[source] + int(source in members and not inside) for source in node.all_input_nodes]
        depth[node] = max(depths, default=0)
        if inside:
            found.setdefault(depth[node], []).append(node)
    return [found[level] for level in sorted(found)]


def components(nodes: Iterable[torch.fx.Node]) -> Iterator[list[torch.fx.Node]]:
    """Connected pieces of ``nodes``, each in graph order, in order of their first node."""
    inside = list(nodes)
    home = {node: node for node in inside}

    def root(node: torch.fx.Node) -> torch.fx.Node:
        while home[node] is not node:
            home[node] = home[home[node]]
            node = home[node]
        return node

    for node in inside:
        for source in node.all_input_nodes:
            if source in home:
                home[root(node)] = root(source)
    pieces: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in inside:
        pieces.setdefault(root(node), []).append(node)
    yield from pieces.values()


def inlinable(graph: torch.fx.Graph, members: set[torch.fx.Node], others: set[torch.fx.Node]) -> set[torch.fx.Node]:
    """``members`` and the producers that are computed again inside rather than read; ``others`` belong to other regions.

    Views and constants always; what only the region needs; and short pointwise chains that others need as well.
    """
    inside = set(members)
    varying = varying_nodes(graph)
    steps = dict.fromkeys(members, 0)
    for node in reversed(graph.nodes):
        users = [user for user in node.users if user in inside]
        if node in inside or node in others or not users or not is_expressible(node) or not is_tensor(node):
            continue
        if _is_search_row(node, users):
            continue
        own = int(not (is_view(node) or is_constant(node)))
        steps[node] = own + max(steps[user] for user in users)
        alone = len(users) == len(node.users)
        again = steps[node] <= _LONGEST_RECOMPUTED and _is_not_wider(node)
        repeats = is_pointwise(node) and target_name(node) != "aten.cat.default"
        if not own or ((repeats or _is_rearrangement(node, varying)) and (alone or again)):
            inside.add(node)
    return inside


def _is_search_row(node: torch.fx.Node, users: list[torch.fx.Node]) -> bool:
    """Borders that are computed: every value of the search reads many of them, so they are written once."""
    if is_view(node):
        return False
    borders = [
        user.args[0 if "searchsorted" in target_name(user) else 1] for user in users if target_name(user) in SEARCHES
    ]
    return node in borders


def _is_rearrangement(node: torch.fx.Node, varying: set[torch.fx.Node]) -> bool:
    """An indexed read at places known without data, such as a roll: no more elements than there were."""
    source = node.args[0]
    if target_name(node) not in _INDEXED_READS or not isinstance(source, torch.fx.Node):
        return False
    fixed = all(other not in varying for other in node.all_input_nodes if other is not source)
    return fixed and elements(node) <= elements(source)


def _is_not_wider(node: torch.fx.Node) -> bool:
    """Reading a producer's own inputs must not cost much more than reading the producer."""
    return 2 * _hinted_bytes(node) >= _read_bytes(node)


def _hinted_bytes(node: torch.fx.Node) -> float:
    return elements(node) * tensor_of(node).element_size()


def _read_bytes(node: torch.fx.Node) -> float:
    return sum(_hinted_bytes(source) for source in node.all_input_nodes if is_tensor(source))


def sinks(nodes: Iterable[torch.fx.Node], inside: set[torch.fx.Node]) -> list[torch.fx.Node]:
    """Those of ``nodes`` whose value is needed outside."""
    return [node for node in nodes if any(user not in inside for user in node.users)]
