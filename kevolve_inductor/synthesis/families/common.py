"""Steps every family's matcher takes: which neighbours to swallow, which values leave, and whether the cut is sound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch.fx

from ...exc import UnsupportedError
from ...graph.capture import identifiers
from ...graph.meta import hinted_numel, spec_of, tensor_of
from ...graph.region import TensorSpec
from ...kernel import Argument, ArgumentKind
from ...platforms.platform import Target
from ..expression import is_constant, is_expressible, is_view
from ..family import Schedule, ScheduleSpace


def absorbable(graph: torch.fx.Graph, core: Iterable[torch.fx.Node]) -> set[torch.fx.Node]:
    """Expressible producers of ``core`` that are better recomputed inside the region than written to memory.

    A producer is swallowed if nothing outside needs it; views and constants always are, since they move no memory. One
    that others read too has to be written anyway, so the region loads it.
    """
    inside = set(core)
    for node in reversed(graph.nodes):
        if node in inside or not is_expressible(node) or not node.users:
            continue
        users_inside = [user in inside for user in node.users]
        free = is_constant(node) or is_view(node)
        if all(users_inside) or (free and any(users_inside)):
            inside.add(node)
    return inside - set(core)


def in_graph_order(graph: torch.fx.Graph, nodes: Iterable[torch.fx.Node]) -> tuple[torch.fx.Node, ...]:
    wanted = set(nodes)
    return tuple(node for node in graph.nodes if node in wanted)


def used_outside(node: torch.fx.Node, nodes: set[torch.fx.Node]) -> bool:
    return any(user not in nodes for user in node.users)


def check_acyclic(inputs: Iterable[torch.fx.Node], outputs: Iterable[torch.fx.Node]) -> None:
    """Raises ``UnsupportedError("convexity")`` if an input is computed from an output: one kernel cannot be both sides."""
    outputs = set(outputs)
    seen: set[torch.fx.Node] = set()
    stack = list(inputs)
    while stack:
        node = stack.pop()
        if node in outputs:
            raise UnsupportedError("convexity", f"an input of the region depends on its output {node}")
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)


def elements(node: torch.fx.Node) -> float:
    """Number of elements at the sizes seen; infinite where a size depends on data and nothing was seen."""
    try:
        return hinted_numel(node)
    except UnsupportedError:
        return math.inf


def specs_of(nodes: Iterable[torch.fx.Node]) -> tuple[TensorSpec, ...]:
    """Specs of the region's inputs or outputs, which type and address the kernel's parameters."""
    return tuple(spec_of(tensor_of(node)) for node in nodes)


def symbols_of(specs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """Sorted symbols of the sizes and strides of the region's inputs and outputs.

    ``Argument("size", k)`` counts within them; ``graph.capture.canonical_kernel`` then takes the order of the region.
    """
    return tuple(sorted({name for spec in specs for dim in (*spec.shape, *spec.stride) for name in identifiers(dim)}))


def arguments_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], symbols: Sequence[str], workspaces: int = 0
) -> tuple[Argument, ...]:
    """A kernel's arguments in the order that emitters take them: inputs, outputs, workspaces, sizes."""
    kinds: tuple[tuple[ArgumentKind, int], ...] = (
        ("input", len(inputs)), ("output", len(outputs)), ("workspace", workspaces), ("size", len(symbols))
    )  # fmt: skip
    return tuple(Argument(kind, k) for kind, count in kinds for k in range(count))


def vector_choices(target: Target, bits: tuple[int, int] = (512, 256)) -> dict[str, tuple[int | str | bool, ...]]:
    """``bits`` of the vectors that a compiler takes for loops, the likelier first, where the chip has a choice."""
    return {"vector": bits} if "avx512f" in target.features else {}


def vector_pragma(schedule: Schedule) -> str:
    """Compilers take half of the longest vectors for chips that they do not know, and for those that once ran slower by them."""
    bits = schedule.get("vector")
    return f'#pragma GCC target("prefer-vector-width={bits}")\n' if bits else ""


def seeded(choices: Mapping[str, tuple[int | str | bool, ...]], *changes: Schedule) -> ScheduleSpace:
    """The space of ``choices`` with seeds: the default, then it with each of ``changes`` that only names existing values."""
    space = ScheduleSpace(choices)
    fitting = [c for c in changes if all(name in choices and value in choices[name] for name, value in c.items())]
    return ScheduleSpace(choices, tuple({**space.default, **change} for change in ({}, *fitting)))
