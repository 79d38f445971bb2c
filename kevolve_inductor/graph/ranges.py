"""Which values integers take: seen at the graph's inputs, propagated through the graph.

A search makes its own inputs, so it must know that these ids are below the table's size and that those offsets rise.
Only statistics are kept, never a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx

from ..exc import UnsupportedError
from .meta import hint_of, target_name
from .region import InputRange

Ranges = dict[torch.fx.Node, InputRange]

# The same values, or some of them, in another place; and those that an index picks.
MOVES = {
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.permute.default",
    "aten.unsqueeze.default", "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.expand.default",
    "aten.clone.default", "aten.alias.default", "aten.select.int", "aten.slice.Tensor", "aten.transpose.int",
}  # fmt: skip
_PICKS = {"aten.index.Tensor", "aten.gather.default", "aten.index_select.default"}
_KEEPS_ORDER = {"aten.clone.default", "aten.alias.default", "aten.slice.Tensor"}


def seen_range(value: Any) -> InputRange | None:
    """Range of a real integer tensor; ``None`` for anything else, and for an empty one."""
    if not isinstance(value, torch.Tensor) or isinstance(value, torch._subclasses.FakeTensor):
        return None
    if value.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8) or value.numel() == 0:
        return None
    low, high = int(value.min()), int(value.max())
    rises = value.dim() == 1 and value.numel() > 1 and bool((value[1:] >= value[:-1]).all())
    return InputRange(low, high, rises)


def seen_ranges(example_inputs: Sequence[Any]) -> tuple[InputRange | None, ...]:
    return tuple(seen_range(value) for value in example_inputs)


def propagate(graph: torch.fx.Graph, seen: Sequence[InputRange | None]) -> Ranges:
    """Ranges of the integer values of ``graph``, as far as simple rules carry them."""
    ranges: Ranges = {}
    for node in graph.nodes:
        found = _placeholder(node, seen) if node.op == "placeholder" else _propagated(node, ranges)
        if found is not None:
            ranges[node] = found
    return ranges


def _placeholder(node: torch.fx.Node, seen: Sequence[InputRange | None]) -> InputRange | None:
    """AOTAutograd names graph inputs by their position: ``arg3_1`` in inference, ``primals_4`` in training."""
    inference, training = re.fullmatch(r"arg(\d+)_1", node.name), re.fullmatch(r"primals_(\d+)", node.name)
    position = int(inference[1]) if inference else int(training[1]) - 1 if training else -1
    return seen[position] if 0 <= position < len(seen) and is_integer(node) else None


def is_integer(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool


def _propagated(node: torch.fx.Node, ranges: Ranges) -> InputRange | None:
    name = target_name(node)
    try:
        if name == "getitem":
            return _selected_index(node)
        if not is_integer(node):
            return None
        if name in MOVES or name in _PICKS:
            return _moved(node, name, ranges)
        rule = _RULES.get(name)
        return rule(node, ranges) if rule else None
    except UnsupportedError:
        return None


def _moved(node: torch.fx.Node, name: str, ranges: Ranges) -> InputRange | None:
    source = ranges.get(node.args[0])  # type: ignore[arg-type]
    if source is None:
        return None
    return InputRange(source.low, source.high, source.monotone and name in _KEEPS_ORDER)


def _selected_index(node: torch.fx.Node) -> InputRange | None:
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    name = target_name(source)
    if node.args[1] != 1 or name not in ("aten.topk.default", "aten.sort.default", "aten.sort.stable", "aten.max.dim"):
        return None
    operand = source.args[0].meta["val"]  # type: ignore[union-attr]
    position = {"aten.topk.default": 2, "aten.sort.stable": 2}.get(name, 1)
    dim: Any = source.args[position] if len(source.args) > position else source.kwargs.get("dim", -1)
    return InputRange(0, max(hint_of(operand.shape[dim]) - 1, 0)) if operand.dim() else InputRange(0, 0)


def _operand(argument: Any, ranges: Ranges) -> InputRange:
    if isinstance(argument, torch.fx.Node) and argument in ranges:
        return ranges[argument]
    if isinstance(argument, int):
        return InputRange(int(argument), int(argument))
    raise UnsupportedError("structure", "range not known")


def _extremes(op: Callable[[int, int], int]) -> Callable[[torch.fx.Node, Ranges], InputRange]:
    def rule(node: torch.fx.Node, ranges: Ranges) -> InputRange:
        a, b = _operand(node.args[0], ranges), _operand(node.args[1], ranges)
        corners = [op(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        if min(corners) < -(2**63) or max(corners) >= 2**63:
            raise UnsupportedError("structure", "may wrap around")
        return InputRange(min(corners), max(corners))

    return rule


def _sub(node: torch.fx.Node, ranges: Ranges) -> InputRange:
    a, b = _operand(node.args[0], ranges), _operand(node.args[1], ranges)
    if a.monotone and b.monotone:
        # Differences of neighbouring offsets: lengths.
        return InputRange(0, max(a.high - b.low, 0))
    return InputRange(a.low - b.high, a.high - b.low)


def _remainder(node: torch.fx.Node, ranges: Ranges) -> InputRange | None:
    divisor = node.args[1]
    return InputRange(0, divisor - 1) if isinstance(divisor, int) and divisor > 0 else None


def _clamp(node: torch.fx.Node, ranges: Ranges) -> InputRange | None:
    name = target_name(node)
    low: Any = node.args[1] if name != "aten.clamp_max.default" and len(node.args) > 1 else None
    high: Any = node.args[1] if name == "aten.clamp_max.default" else node.args[2] if len(node.args) > 2 else None
    source = ranges.get(node.args[0])  # type: ignore[arg-type]
    bottom = source.low if source else low
    top = source.high if source else high
    if not isinstance(bottom, int) or not isinstance(top, int):
        return None
    if isinstance(low, int):
        bottom, top = max(bottom, low), max(top, low)
    if isinstance(high, int):
        bottom, top = min(bottom, high), min(top, high)
    return InputRange(bottom, top)


def _where(node: torch.fx.Node, ranges: Ranges) -> InputRange:
    a, b = (_operand(argument, ranges) for argument in node.args[1:3])
    return InputRange(min(a.low, b.low), max(a.high, b.high))


def _full(node: torch.fx.Node, ranges: Ranges) -> InputRange | None:
    value = node.args[1]
    return InputRange(value, value) if isinstance(value, int) else None


def _iota(node: torch.fx.Node, ranges: Ranges) -> InputRange:
    start, step, length = node.kwargs.get("start", 0), node.kwargs.get("step", 1), hint_of(node.meta["val"].shape[0])
    if not isinstance(start, int) or not isinstance(step, int):
        raise UnsupportedError("structure", "range not known")
    last = start + step * max(length - 1, 0)
    return InputRange(min(start, last), max(start, last), step >= 0 and length > 1)


def _bucketize(node: torch.fx.Node, ranges: Ranges) -> InputRange:
    borders: Any = node.args[0] if "searchsorted" in target_name(node) else node.args[1]
    return InputRange(0, hint_of(borders.meta["val"].shape[-1]))


def _joined(node: torch.fx.Node, ranges: Ranges) -> InputRange:
    parts = [_operand(part, ranges) for part in node.args[0]]  # type: ignore[union-attr]
    return InputRange(min(part.low for part in parts), max(part.high for part in parts))


def _argument_extreme(node: torch.fx.Node, ranges: Ranges) -> InputRange:
    value: Any = node.args[0].meta["val"]  # type: ignore[union-attr]
    dim: Any = node.args[1] if len(node.args) > 1 else None
    extent = value.numel() if dim is None else hint_of(value.shape[dim])
    return InputRange(0, max(extent - 1, 0))


def _converted(node: torch.fx.Node, ranges: Ranges) -> InputRange | None:
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    if source.meta["val"].dtype == torch.bool:
        return InputRange(0, 1)
    return ranges.get(source)


_RULES: Mapping[str, Callable[[torch.fx.Node, Ranges], InputRange | None]] = {
    "aten.add.Tensor": _extremes(lambda a, b: a + b), "aten.mul.Tensor": _extremes(lambda a, b: a * b),
    "aten.maximum.default": _extremes(max), "aten.minimum.default": _extremes(min),
    "aten.sub.Tensor": _sub, "aten.remainder.Scalar": _remainder, "aten.remainder.Tensor": _remainder,
    "aten.clamp.default": _clamp, "aten.clamp_min.default": _clamp, "aten.clamp_max.default": _clamp,
    "aten.where.self": _where, "aten.full.default": _full, "prims.iota.default": _iota,
    "aten.bucketize.Tensor": _bucketize, "aten.searchsorted.Tensor": _bucketize,
    "aten.cat.default": _joined, "aten.argmax.default": _argument_extreme, "aten.argmin.default": _argument_extreme,
    "prims.convert_element_type.default": _converted, "aten._to_copy.default": _converted,
}  # fmt: skip
