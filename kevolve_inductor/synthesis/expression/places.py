"""Writes of one place in every row: what looks like a scatter, but is a comparison of positions.

The gradient of picking one element of each row (``gather``, ``x[rows, classes]``, ``select``) writes it into zeros at the
place it came from. Element by element that is a choice: the value where the position is the row's, what was there elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.fx

from ...graph.meta import shape_of, target_name
from . import expression as ex
from .expression import Expr
from .rules import Builds, Rule, checked
from .views import Index, broadcast

_VIEWS = ("aten.unsqueeze.default", "aten.view.default", "aten.reshape.default", "aten.expand.default")
_SCATTERS = ("aten.scatter_add.default", "aten.scatter.src", "aten.scatter.value")


def writes_one_place(node: torch.fx.Node) -> bool:
    """Whether at most one element of each row is written, at a place that one index names."""
    name = target_name(node)
    if name in _SCATTERS:
        return _has_one_index_a_row(node)
    if name == "aten.index_put.default":
        return _free_axis(node) is not None
    return name == "aten.select_scatter.default"


def _has_one_index_a_row(node: torch.fx.Node) -> bool:
    arguments: tuple[Any, ...] = node.args
    base, dim, positions, values = arguments[:4]
    shape = list(shape_of(base))
    if not shape or node.kwargs or len(arguments) > 4:
        return False
    shape[dim] = 1
    index_shape = list(shape_of(positions))
    return index_shape == shape and (not isinstance(values, torch.fx.Node) or list(shape_of(values)) == shape)


def _free_axis(node: torch.fx.Node) -> int | None:
    """Of ``index_put``: the axis whose index is not simply its own position, where there is exactly one."""
    arguments: Any = node.args
    base, axes = arguments[:2]
    shape = shape_of(base)
    if len(axes) < 2 or any(index is None or index.meta["val"].dtype.itemsize < 4 for index in axes):
        return None
    events = _events(axes)
    numbers = {axis: _range_along(index, shape[axis], len(events)) for axis, index in enumerate(axes)}
    free = [axis for axis, along in numbers.items() if along is None]
    used = [along for along in numbers.values() if along is not None]
    # Each axis of what is written has to be named once, so that no two of them meet.
    complete = sorted(used) == list(range(len(events)))
    return free[0] if len(free) == 1 and complete else None


def _events(indices: Sequence[torch.fx.Node]) -> tuple[Any, ...]:
    return max((shape_of(index) for index in indices), key=len)


def _range_along(index: torch.fx.Node, size: Any, rank: int) -> int | None:
    """The axis, of ``rank``, along which ``index`` counts from zero to ``size``."""
    shape = shape_of(index)
    wide = [axis for axis, extent in enumerate(shape) if extent != 1]
    source: Any = index
    while target_name(source) in _VIEWS:
        source = source.args[0]
    counts = target_name(source) in ("prims.iota.default", "aten.arange.default") and source.args[0] == size
    if len(wide) != 1 or shape[wide[0]] != size or not counts:
        return None
    starts_at_zero = source.kwargs.get("start", 0) == 0 and source.kwargs.get("step", 1) == 1
    return wide[0] + rank - len(shape) if starts_at_zero else None


def _scatter(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    arguments: Any = node.args
    base, dim, positions, values = arguments[:4]
    dim %= len(index)
    row = (*index[:dim], ex.index(0), *index[dim + 1 :])
    before = b.build(base, index)
    at = checked(b.build(positions, row), shape_of(node)[dim], wrap=False)
    value = b.build(values, row) if isinstance(values, torch.fx.Node) else ex.const(values, before.dtype)
    adds = target_name(node) == "aten.scatter_add.default"
    return _chosen(before, index[dim], at, ex.cast(value, before.dtype), adds)


def _index_put(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    arguments: Any = node.args
    base, axes, values = arguments[:3]
    shape, free, events = shape_of(node), _free_axis(node), _events(axes)
    assert free is not None
    place = {_range_along(one, shape[axis], len(events)): index[axis] for axis, one in enumerate(axes) if axis != free}
    event = tuple(place[along] for along in range(len(events)))
    rest = index[len(axes) :]
    at = b.build(axes[free], broadcast(event, shape_of(axes[free]), events))
    onto = (*events, *shape[len(axes) :])
    value = b.build(values, broadcast((*event, *rest), shape_of(values), onto))
    adds = bool(arguments[3] if len(arguments) > 3 else node.kwargs.get("accumulate", False))
    before = b.build(base, index)
    return _chosen(before, index[free], checked(at, shape[free], wrap=True), ex.cast(value, before.dtype), adds)


def _select_scatter(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    arguments: Any = node.args
    base, source, dim, at = arguments[:4]
    dim %= len(index)
    value = b.build(source, (*index[:dim], *index[dim + 1 :]))
    before = b.build(base, index)
    size = shape_of(node)[dim]
    if size == 1:
        return value
    place = ex.index(at % size if isinstance(size, int) else at)
    return _chosen(before, index[dim], place, ex.cast(value, before.dtype), adds=False)


def _chosen(before: Expr, position: Expr, at: Expr, value: Expr, adds: bool) -> Expr:
    is_there = ex.make("eq", "bool", (ex.make("as_value", "int64", (position,)), at))
    is_zero = before.op == "const" and before.value == 0
    written = value if not adds or is_zero else ex.make("add", before.dtype, (before, value))
    return ex.make("where", before.dtype, (is_there, written, before))


PLACES: dict[str, Rule] = {
    **dict.fromkeys(_SCATTERS, _scatter), "aten.index_put.default": _index_put,
    "aten.select_scatter.default": _select_scatter,
}  # fmt: skip
