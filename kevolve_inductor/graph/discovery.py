"""Finding regions: every family looks at the graph, overlaps are settled, and what is left is ranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch.fx

from ..exc import UnsupportedError
from ..platforms.platform import Ceilings
from ..synthesis.family import Family, Match, Rejection
from .capture import Captured, capture
from .cost import estimate_s, floor_s, least_bytes
from .indexed import indexed_ranges
from .meta import hint_of, tensor_of
from .padding import without_padding
from .ranges import Ranges
from .region import InputRange, Workload
from .view import GraphView


@dataclass(frozen=True)
class Found:
    """A region of a graph, ready to be looked up or searched.

    ``inputs`` and ``outputs`` are names of nodes of the graph itself; ``match`` may be of a view of it.
    ``estimate_us`` is a modelled time, ``share`` its part of the whole graph's modelled time, ``floor_us`` the least time
    any kernel needs at the measured ceilings, ``least_bytes`` what it must move.
    """

    match: Match
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: Captured
    workload: Workload
    family: Family
    title: str
    estimate_us: float
    share: float
    floor_us: float
    least_bytes: int

    @property
    def promise(self) -> float:
        """Time that could be won: headroom × share, on which the budget is spent first."""
        return self.share * max(0.0, 1 - self.floor_us / max(self.estimate_us, 1e-9))


@dataclass(frozen=True)
class Discovery:
    found: tuple[Found, ...]
    rejections: tuple[Rejection, ...]


def discover(
    graph: torch.fx.Graph, families: Sequence[Family], ranges: Ranges, ceilings: Ceilings, device: str,
    failed: Callable[[Family, Exception], None] | None = None,
) -> Discovery:  # fmt: skip
    """Regions of ``graph`` on ``device``, the most promising first, and why the other candidates were left.

    Families look one after another, each at the graph as it will be once the regions found before are swapped, so that a
    later family neither claims their insides nor misses that their results are read from memory. ``failed`` is told of a
    family that raised what it should not, and is then left out; without it that is raised.
    """
    rejections: list[Rejection] = []
    found: list[Found] = []
    total_s = sum(estimate_s(node, ceilings) for node in graph.nodes)
    known = {node.name: ranges[node] for node in graph.nodes if node in ranges}
    view = GraphView.of(graph).rewritten(without_padding(graph))
    accepted: list[Match] = []
    for family in families:
        view = view.contracted(accepted)
        accepted = []
        try:
            results = list(family.find(view.graph, device))
        except Exception as error:
            # Whatever one family raises on a graph that nobody has seen, the others have their kernels.
            if failed is None:
                raise
            failed(family, error)
            continue
        for result in results:
            if isinstance(result, Rejection):
                rejections.append(result)
                continue
            conflict = _conflict(result, accepted)
            if conflict:
                rejections.append(Rejection("overlap", conflict, family.name, result.outputs))
                continue
            try:
                found.append(_describe(result, family, view, known, ceilings, total_s))
                accepted.append(result)
            except UnsupportedError as error:
                rejections.append(Rejection(error.code, error.message, family.name, result.nodes))  # type: ignore[arg-type]
    found.sort(key=lambda region: -region.promise)
    return Discovery(tuple(found), tuple(rejections))


def _replaced(match: Match) -> list[torch.fx.Node]:
    """Nodes that vanish with the swap. Those recomputed inside but needed outside as well stay and may be shared."""
    inside = set(match.nodes)
    outputs = set(match.outputs)
    return [node for node in match.nodes if node in outputs or all(user in inside for user in node.users)]


def _conflict(match: Match, accepted: Sequence[Match]) -> str | None:
    """Why ``match`` cannot be swapped beside those accepted before it: it replaces the same value, or closes a cycle.

    Two regions that are each sound may still need one another's results, when each computes several things.
    """
    mine = set(_replaced(match))
    for other in accepted:
        if mine & set(_replaced(other)):
            return f"shares a value with a region of {other.family}"
    producers = {node: other for other in accepted for node in other.outputs}
    outputs, seen = set(match.outputs), set[torch.fx.Node]()
    stack = list(match.inputs)
    while stack:
        node = stack.pop()
        if node in outputs:
            return "would wait for its own result through another region"
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
            stack.extend(producers[node].inputs if node in producers else ())
    return None


def _describe(
    match: Match, family: Family, view: GraphView, known: Mapping[str, InputRange], ceilings: Ceilings, total_s: float
) -> Found:
    captured = capture(match.nodes, match.inputs, match.outputs)
    estimate = sum(estimate_s(node, ceilings) for node in _replaced(match))
    moved = least_bytes(match.inputs, match.nodes, match.outputs)
    dtype = captured.region.output_specs[0].dtype
    inputs = tuple(view.name(node) for node in match.inputs)
    return Found(
        match=match,
        inputs=inputs,
        outputs=tuple(view.name(node) for node in match.outputs),
        captured=captured,
        workload=_workload(match, captured, [known.get(name) for name in inputs]),
        family=family,
        title=_title(match, family),
        estimate_us=estimate * 1e6,
        share=estimate / total_s if total_s else 0.0,
        floor_us=floor_s(moved, match.flops, dtype, ceilings) * 1e6,
        least_bytes=moved,
    )


def _title(match: Match, family: Family) -> str:
    shapes = ", ".join("×".join(str(s) for s in tensor_of(node).shape) or "scalar" for node in match.inputs[:2])
    more = f" +{len(match.inputs) - 2}" if len(match.inputs) > 2 else ""
    return f"{family.name} {shapes}{more}"


def _workload(match: Match, captured: Captured, seen: Sequence[InputRange | None]) -> Workload:
    sizes = tuple(
        (name, hint_of(tensor_of(match.inputs[which]).shape[dim])) for name, which, dim in captured.region.symbols
    )
    indexed = indexed_ranges(match.nodes)
    # Ids and positions of which nothing is known are tried within the smallest axis that the region indexes.
    narrowest = min((one.high for one in indexed.values() if one.low == 0 and not one.monotone), default=None)
    smallest = None if narrowest is None else InputRange(0, narrowest)
    known = [
        entry or (indexed.get(node, smallest) if _is_index(node) else None)
        for node, entry in zip(match.inputs, seen, strict=True)
    ]
    return Workload(sizes, tuple(known))


def _is_index(node: torch.fx.Node) -> bool:
    value = tensor_of(node)
    return not value.is_floating_point() and value.dtype.itemsize >= 4
