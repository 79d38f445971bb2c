"""Swapping kernels into an FX graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
import torch.fx
from torch._inductor.pattern_matcher import stable_topological_sort

from ..exc import SwapError
from .launch import Program, empty_outputs, register_lowering, register_program
from .swap import Swap


def apply_swaps(graph: torch.fx.Graph, swaps: Sequence[Swap]) -> None:
    """Put every swap into ``graph`` in place. Raises ``SwapError`` if a name is unknown; the graph is then unchanged."""
    named = {node.name: node for node in graph.nodes}
    missing = [name for swap in swaps for name in (*swap.inputs, *swap.outputs) if name not in named]
    if missing:
        raise SwapError(f"the graph has no node {missing[0]!r}")
    register_lowering()
    replaced: dict[torch.fx.Node, torch.fx.Node] = {}
    for swap in swaps:
        # An input may be the output of a region swapped just before.
        inputs = [replaced.get(named[name], named[name]) for name in swap.inputs]
        outputs = [named[name] for name in swap.outputs]
        for old, new in zip(outputs, _insert(graph, swap, inputs, outputs), strict=True):
            old.replace_all_uses_with(new)
            replaced[old] = new
    stable_topological_sort(graph)
    graph.eliminate_dead_code()
    graph.lint()


def _insert(
    graph: torch.fx.Graph, swap: Swap, inputs: Sequence[torch.fx.Node], outputs: Sequence[torch.fx.Node]
) -> list[torch.fx.Node]:
    program = Program(swap.kernel, swap.region)
    digest = register_program(program)
    # In front of everything that may read the results; inputs that come later are sorted in front of it afterwards.
    with graph.inserting_before(outputs[0]):
        sizes = [_size_node(graph, inputs[which], dim) for _, which, dim in swap.region.symbols]
        launch = graph.call_function(torch.ops.kevolve.launch.default, (list(inputs), sizes, digest))
        items = [graph.call_function(operator.getitem, (launch, k)) for k in range(len(outputs))]
    values = [size.meta["val"] for size in sizes]
    device = outputs[0].meta["val"].device
    fake_mode = outputs[0].meta["val"].fake_mode
    with fake_mode:
        launch.meta["val"] = empty_outputs(program, values, device)
    for position, (item, old) in enumerate(zip(items, outputs, strict=True)):
        item.meta.update({**old.meta, "val": launch.meta["val"][position]})
    return items


def _size_node(graph: torch.fx.Graph, tensor: torch.fx.Node, dim: int) -> torch.fx.Node:
    node = graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
    node.meta["val"] = tensor.meta["val"].shape[dim]
    return node
