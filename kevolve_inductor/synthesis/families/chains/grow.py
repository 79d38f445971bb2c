"""Which nodes make a chain: from its first steps through what is computed of them, one after another, to further products."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import hint_of, shape_of, target_name, tensor_of
from ...expression import expression as ex
from ...expression import is_pointwise, is_view
from ..common import absorbable, check_acyclic, used_outside
from ..products import Product, is_product, product_of
from ..rows.operators import is_reduction, reduction_of
from .forms import BlockedError, Frame, rows_before
from .plan import ChainPlan
from .structure import Reader, check_rows
from .sweeps import WIDEST_HELD, WideError, order_of

_ATTEMPTS = 24
_MOST_INPUTS, _MOST_OUTPUTS = 24, 6
# Nodes behind a product that are looked at.
_FARTHEST = 400
_JOINS = ("aten.cat.default", "aten.constant_pad_nd.default")
# Sums over the long axis of few rows are another task than pooling.
_LEAST_ROWS, _LONGEST_POOL = 64, 4096


@dataclass(frozen=True)
class Chain:
    nodes: set[torch.fx.Node]
    inputs: tuple[torch.fx.Node, ...]
    outputs: tuple[torch.fx.Node, ...]
    plan: ChainPlan


class Grower:
    """The products and pools of a graph, and the order of its nodes; one instance serves all chains of the graph."""

    def __init__(self, graph: torch.fx.Graph, device: str) -> None:
        self.graph, self.device = graph, device
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.products: dict[torch.fx.Node, Product] = {}
        self.padded: dict[torch.fx.Node, Product] = {}
        if device != "cpu":
            for node in graph.nodes:
                if is_product(node) and _is_on(node, device):
                    found = product_of(node)
                    self.products[found.node] = found
                    self.padded |= dict.fromkeys(found.inner, found)

    def seeds(self) -> Iterator[tuple[torch.fx.Node, ...]]:
        """Where chains may begin: sums over the same axis, which one pass over it gives together, and products."""
        pools: dict[tuple[tuple[Dim, ...], int], list[torch.fx.Node]] = {}
        for node in self.graph.nodes:
            axis = _pooled_axis(node) if is_reduction(node) and _is_on(node, self.device) else None
            if axis is not None:
                pools.setdefault(axis, []).append(node)
        for group in pools.values():
            alone = self._independent(group)
            if len(alone) > 1:
                yield alone
        yield from ((node,) for node, found in self.products.items() if _may_fit(found))

    def _independent(self, group: Sequence[torch.fx.Node]) -> tuple[torch.fx.Node, ...]:
        """Those of ``group`` that do not need another one's result."""
        found: dict[torch.fx.Node, None] = {}
        depends: set[torch.fx.Node] = set()
        for node in self.graph.nodes:
            if any(source in depends or source in found for source in node.all_input_nodes):
                depends.add(node)
            elif node in group:
                found[node] = None
        return tuple(found)

    def chain_of(self, seeds: tuple[torch.fx.Node, ...], taken: set[torch.fx.Node]) -> Chain | None:
        """The longest chain that begins with ``seeds``; ``None`` where those lead to no other product.

        Raises ``UnsupportedError``.
        """
        banned = set(taken)
        first: BlockedError | None = None
        for _ in range(_ATTEMPTS):
            members = self._grown(seeds, banned)
            if len(seeds) + sum(node in self.products for node in members if node not in seeds) < 2:
                if first is not None:
                    raise first
                return None
            try:
                return self._read(seeds, members, banned)
            except BlockedError as error:
                if error.node in banned or error.node in seeds:
                    raise
                first = first or error
                banned.add(error.node)
        raise UnsupportedError("structure", f"what follows {seeds[0]} does not fit together")

    def _grown(self, seeds: tuple[torch.fx.Node, ...], banned: set[torch.fx.Node]) -> list[torch.fx.Node]:
        """``seeds`` and what is computed from them and from values that do not depend on what is left out, in graph order."""
        members = {node for seed in seeds for node in self._inner(seed)}
        depends = set(members)
        waiting = [(self.order[user], user) for node in members for user in node.users]
        heapq.heapify(waiting)
        for _ in range(_FARTHEST):
            if not waiting:
                break
            _, node = heapq.heappop(waiting)
            if node in depends or node not in self.order:
                continue
            depends.add(node)
            fits = node not in banned and self._may_join(node, members)
            if fits and all(source in members or source not in depends for source in node.all_input_nodes):
                members.update(self._inner(node))
                for source in node.all_input_nodes:
                    members.update(self._sibling(source, members, seeds, banned))
                depends.update(members)
            for user in node.users:
                heapq.heappush(waiting, (self.order[user], user))
        return sorted(members, key=self.order.__getitem__)

    def _sibling(
        self,
        node: torch.fx.Node,
        members: set[torch.fx.Node],
        seeds: tuple[torch.fx.Node, ...],
        banned: set[torch.fx.Node],
    ) -> list[torch.fx.Node]:
        """A product of the same rows as the first one, and what leads from it to ``node``: the other half of a gate."""
        path: list[torch.fx.Node] = []
        first = self.products.get(seeds[0])
        while first is not None and node not in members and node not in banned and len(node.users) == 1:
            if node in self.products:
                return [*path, *self._inner(node)] if self.products[node].left is first.left else []
            if not self._may_join(node, members) or is_reduction(node) or len(node.all_input_nodes) != 1:
                return []
            path.append(node)
            (node,) = node.all_input_nodes
        return []

    def _inner(self, node: torch.fx.Node) -> tuple[torch.fx.Node, ...]:
        return self.padded[node].inner if node in self.padded else (node,)

    def _may_join(self, node: torch.fx.Node, members: set[torch.fx.Node]) -> bool:
        if not _is_on(node, self.device):
            return False
        name = target_name(node)
        if name == "getitem":
            return is_reduction(node.args[0]) and node.args[0] in members  # type: ignore[arg-type]
        known = node in self.padded or is_reduction(node) or is_view(node)
        return known or (is_pointwise(node) and name not in _JOINS)

    def _with_norms(
        self, seeds: tuple[torch.fx.Node, ...], members: list[torch.fx.Node], banned: set[torch.fx.Node]
    ) -> list[torch.fx.Node]:
        """With reductions of the first product's rows that nothing outside needs, such as those of a norm in front of it."""
        first = self.products.get(seeds[0])
        if first is None:
            return members
        inside = set(members)
        spare = absorbable(self.graph, inside)
        for node in reversed(self.graph.nodes):
            if node in inside or node in banned or not is_reduction(node) or not _is_on(node, self.device):
                continue
            results = {user for user in node.users if target_name(user) == "getitem"} or {node}
            if any(user not in inside | spare for result in results for user in result.users):
                continue
            if shape_of(node.args[0]) == shape_of(first.left):  # type: ignore[arg-type]
                inside |= {node, *results}
                spare = absorbable(self.graph, inside)
        return sorted(inside, key=self.order.__getitem__)

    def _read(
        self, seeds: tuple[torch.fx.Node, ...], members: list[torch.fx.Node], banned: set[torch.fx.Node]
    ) -> Chain:
        members = self._with_norms(seeds, members, banned)
        inside = set(members)
        products = {node: self.products[node] for node in members if node in self.products}
        pools = {node for node in seeds if node not in products}
        spare = absorbable(self.graph, inside)
        outputs = tuple(node for node in members if used_outside(node, inside | spare))
        reader = Reader(self._frame(products, pools), products, pools, members, spare, self.device)
        plan = reader.plan(outputs)
        inputs = tuple(reader.builder.inputs)
        if len(inputs) > _MOST_INPUTS or len(outputs) > _MOST_OUTPUTS:
            raise BlockedError(members[-1], f"a chain of {len(inputs)} inputs and {len(outputs)} outputs")
        check_acyclic(inputs, outputs)
        check_rows(plan)
        if pools and not joins_pools(plan):
            raise UnsupportedError("structure", f"{seeds[0]} and its siblings have nothing in common")
        if self.device != "cpu":
            try:
                order_of(plan)
            except WideError as error:
                raise BlockedError(reader.nodes[error.step], error.message, "size") from error
        nodes = inside | {node for node in reader.builder.inlined if node not in inputs}
        return Chain(nodes, inputs, outputs, plan)

    def _frame(self, products: dict[torch.fx.Node, Product], pools: set[torch.fx.Node]) -> Frame:
        """Samples and their rows: of pools, or of the last batched product, since the first may turn its operand."""
        for node in pools:
            found = reduction_of(node)
            rows, seen = rows_before(found.source, found.dims[0])
            return Frame(None, rows, (1, seen))
        nodes = list(products)
        stacks = [node for node in nodes if len(shape_of(node)) == 3 and shape_of(node)[0] != 1]
        last = (stacks or nodes)[-1]
        batch = shape_of(last)[0] if stacks else None
        samples, rows_seen = (
            hint_of(n) for n in (tensor_of(last).shape[0] if stacks else 1, tensor_of(last).shape[-2])
        )
        return Frame(batch, shape_of(last)[-2], (samples, rows_seen))


def _may_fit(found: Product) -> bool:
    """Can a program hold the result, or compute it block by block from what it holds?"""
    sides = (shape_of(found.left)[-1], shape_of(found.right)[-1])
    return any(isinstance(side, int) and side <= WIDEST_HELD for side in sides)


def joins_pools(plan: ChainPlan) -> bool:
    """Do sums that read the same memory meet later on?"""
    names = {pool.name for pool in plan.pools}
    tiles = [tile for step in plan.steps for tile in step.tiles] + [store.tile for store in plan.stores]
    met = {name for tile in tiles if len(names & tile.names) > 1 for name in names & tile.names}
    read = [
        {part.value[0] for part in ex.walk(pool.tile.value) if part.op == "read"}
        for pool in plan.pools
        if pool.name in met
    ]
    return len(read) > 1 and set.intersection(*read) in read


def _pooled_axis(node: torch.fx.Node) -> tuple[tuple[Dim, ...], int] | None:
    """The shape and the axis that a sum runs over, where that is a short one in the middle of many rows."""
    try:
        found = reduction_of(node)
        shape = shape_of(found.source)
        if found.kind not in ("sum", "mean") or len(found.dims) != 1 or not 0 < found.dims[0] < len(shape) - 1:
            return None
        extent, (_, rows) = shape[found.dims[0]], rows_before(found.source, found.dims[0])
    except UnsupportedError:
        return None
    fits = isinstance(extent, int) and 1 < extent <= _LONGEST_POOL and rows >= _LEAST_ROWS
    return (shape, found.dims[0]) if fits else None


def _is_on(node: torch.fx.Node, device: str) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(one, torch.Tensor) and one.device.type == device for one in values)
