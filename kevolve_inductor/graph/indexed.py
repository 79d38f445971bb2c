"""Which values integers must have to be positions where a graph indexes with them.

What is seen at a graph's inputs says it better, but a backward graph's inputs are the forward graph's results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.fx

from ..exc import UnsupportedError
from .meta import hint_of, target_name
from .ranges import MOVES, Ranges, is_integer
from .region import InputRange

_MOVES = MOVES | {"aten.t.default", "prims.convert_element_type.default", "aten._to_copy.default"}
_ALONG_AN_AXIS = {
    "aten.index_select.default", "aten.gather.default", "aten.index_add.default", "aten.scatter_add.default",
    "aten.scatter_reduce.two", "aten.scatter.src", "aten.scatter.value",
}  # fmt: skip


def indexed_ranges(nodes: Iterable[torch.fx.Node]) -> Ranges:
    """The narrowest range for each integer that ``nodes`` index with, and for what it is moved from."""
    ranges: Ranges = {}
    for node in nodes:
        try:
            indices = list(_indices(node)) if node.op == "call_function" else []
        except UnsupportedError:
            # A size that is not known before the graph runs.
            continue
        for index, allowed in indices:
            for source in _sources(index):
                known = ranges.get(source)
                ranges[source] = allowed if known is None or allowed.high < known.high else known
    return ranges


def _indices(node: torch.fx.Node) -> Iterator[tuple[torch.fx.Node, InputRange]]:
    name = target_name(node)
    arguments: tuple[Any, ...] = node.args
    match name:
        case "aten.index.Tensor" | "aten._unsafe_index.Tensor" | "aten.index_put.default":
            yield from _by_axis(arguments[0], arguments[1])
        case "aten._unsafe_masked_index_put_accumulate.default":
            yield from _by_axis(arguments[0], arguments[2])
        case "aten.embedding.default":
            yield from _positions(arguments[1], _size(arguments[0], 0))
        case "aten._embedding_bag.default" | "aten._embedding_bag_forward_only.default":
            yield from _positions(arguments[1], _size(arguments[0], 0))
            yield from _rising(arguments[2], 0, _size(arguments[1], 0))
        case "aten._embedding_bag_backward.default":
            gradient, indices, _, *more = arguments
            yield from _bag_gradient(gradient, indices, more[0], more[1], more[3])
        case "aten._embedding_bag_dense_backward.default":
            gradient, indices, *more = arguments
            yield from _bag_gradient(gradient, indices, more[0], more[1], more[3])
        case _ if name in _ALONG_AN_AXIS:
            yield from _positions(arguments[2], _size(arguments[0], arguments[1]))


def _bag_gradient(
    gradient: Any, indices: Any, bags: Any, bag_sizes: Any, rows: Any
) -> Iterator[tuple[torch.fx.Node, InputRange]]:
    """``bags`` says for each of the indices which bag it is of, in order, and ``bag_sizes`` how many each bag has."""
    count = _size(gradient, 0)
    yield from _positions(indices, hint_of(rows))
    yield from _rising(bags, 0, max(count - 1, 0))
    if isinstance(bag_sizes, torch.fx.Node):
        each = max(_size(indices, 0) // max(count, 1), 1)
        yield bag_sizes, InputRange(each, each)


def _by_axis(source: Any, indices: Sequence[Any]) -> Iterator[tuple[torch.fx.Node, InputRange]]:
    for axis, index in enumerate(indices):
        yield from _positions(index, _size(source, axis))


def _positions(index: Any, extent: int) -> Iterator[tuple[torch.fx.Node, InputRange]]:
    # A mask is as good as an index, but any of its values is right.
    if isinstance(index, torch.fx.Node) and index.meta["val"].dtype not in (torch.bool, torch.uint8):
        yield index, InputRange(0, max(extent - 1, 0))


def _rising(index: Any, low: int, high: int) -> Iterator[tuple[torch.fx.Node, InputRange]]:
    if isinstance(index, torch.fx.Node):
        yield index, InputRange(low, high, monotone=True)


def _size(node: Any, axis: Any) -> int:
    shape = node.meta["val"].shape
    return hint_of(shape[axis]) if len(shape) else 1


def _sources(index: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """``index`` and what it is moved or chosen from."""
    stack, seen = [index], set[torch.fx.Node]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        name = target_name(node)
        origins = node.args[:1] if name in _MOVES else node.args[1:3] if name == "aten.where.self" else ()
        stack += [origin for origin in origins if isinstance(origin, torch.fx.Node) and is_integer(origin)]
