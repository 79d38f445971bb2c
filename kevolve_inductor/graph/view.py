"""A graph as families see it: without what Inductor did for its own kernels, and regions that are already spoken for are
single opaque calls."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx

from ..synthesis.family import Match
from .padding import Rewrite


def _region(*values: Any) -> tuple[Any, ...]:
    """Stands for a region that was found before; never run."""
    return values


@dataclass(frozen=True)
class GraphView:
    """``graph`` is the original or a copy of it; ``renamed`` leads from a copy's new nodes to the original's names."""

    graph: torch.fx.Graph
    renamed: Mapping[str, str]

    @classmethod
    def of(cls, graph: torch.fx.Graph) -> GraphView:
        return cls(graph, {})

    def name(self, node: torch.fx.Node) -> str:
        """The name of ``node`` in the original graph."""
        return self.renamed.get(node.name, node.name)

    def contracted(self, matches: Sequence[Match]) -> GraphView:
        """This view with each of ``matches`` replaced by one call; the view itself where there are none.

        It is a copy in any case: what was found keeps pointing into this view's graph, and is asked again when it is tuned.
        """
        if not matches:
            return self
        # Deferred: it brings all of Inductor's pattern matcher along.
        from torch._inductor.pattern_matcher import stable_topological_sort

        graph, nodes, renamed = self._copied()
        for match in matches:
            renamed |= self._contract(graph, nodes, match)
        stable_topological_sort(graph)
        graph.eliminate_dead_code()
        return GraphView(graph, renamed)

    def rewritten(self, rewrites: Sequence[Rewrite]) -> GraphView:
        """A copy of this view with all of ``rewrites``, in graph order; the view itself where there are none."""
        if not rewrites:
            return self
        graph, nodes, renamed = self._copied()
        for one in rewrites:
            old = nodes[one.node.name]
            with graph.inserting_before(old):
                arguments = torch.fx.map_arg((one.args, dict(one.kwargs)), lambda node: nodes[node.name])
                new = graph.call_function(one.target, *arguments)
            new.meta = dict(old.meta)
            old.replace_all_uses_with(new)
            nodes[one.node.name] = new
            renamed[new.name] = self.name(one.node)
        graph.eliminate_dead_code()
        return GraphView(graph, renamed)

    def _copied(self) -> tuple[torch.fx.Graph, dict[str, torch.fx.Node], dict[str, str]]:
        """A copy of the graph, its nodes by the names of this view's, and their names in the original graph."""
        graph, copies = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
        graph.output(graph.graph_copy(self.graph, copies))
        nodes = {old.name: new for old, new in copies.items()}
        return graph, nodes, {new.name: self.name(old) for old, new in copies.items()}

    def _contract(self, graph: torch.fx.Graph, nodes: dict[str, torch.fx.Node], match: Match) -> dict[str, str]:
        outputs = [nodes[node.name] for node in match.outputs]
        with graph.inserting_before(outputs[0]):
            call = graph.call_function(_region, tuple(nodes[node.name] for node in match.inputs))
            items = [graph.call_function(operator.getitem, (call, k)) for k in range(len(outputs))]
        call.meta["val"] = [node.meta["val"] for node in outputs]
        for old, item in zip(outputs, items, strict=True):
            item.meta = dict(old.meta)
            old.replace_all_uses_with(item)
            nodes[old.name] = item
        return {item.name: self.name(old) for old, item in zip(match.outputs, items, strict=True)}
