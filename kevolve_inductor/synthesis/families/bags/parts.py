"""Where the parts of a concatenated value meet, seen through what is computed from it element by element."""

from __future__ import annotations

import math
from typing import Any

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import shape_of, target_name
from ...expression import is_pointwise, is_view

_WHOLE = (-1, [0, 1])


def joints(node: torch.fx.Node, inside: set[torch.fx.Node]) -> tuple[int, list[int]]:
    """The axis along which ``node`` consists of parts, and where they begin and end; ``(-1, [0, 1])`` where of one piece."""
    found: dict[int, set[int]] = {}
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if target_name(current) == "aten.cat.default":
            axis, points = _points(current, shape_of(node))
            found.setdefault(axis, set()).update(points)
        elif is_pointwise(current) or is_view(current):
            fresh = [source for source in current.all_input_nodes if source in inside and source not in seen]
            seen.update(fresh)
            stack += fresh
    if len(found) != 1:
        return _WHOLE
    ((axis, bounds),) = found.items()
    return axis, sorted(bounds)


def _points(node: torch.fx.Node, onto: tuple[Dim, ...]) -> tuple[int, list[int]]:
    """Bounds of the parts of a concatenation along the same axis of ``onto``, the shape of a view of it."""
    shape = shape_of(node)
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    axis = int(given) % len(shape)
    bounds = [0]
    for part in node.args[0]:  # type: ignore[union-attr]
        own = shape_of(part)  # type: ignore[arg-type]
        size = own[axis] if len(own) == len(shape) else 0
        if not isinstance(size, int):
            raise UnsupportedError("dynamic", "concatenation along a dynamic axis")
        bounds.append(bounds[-1] + size)
    if onto == shape:
        return axis, sorted(set(bounds))
    sizes = (*shape[axis:], *onto[axis:])
    if onto[:axis] != shape[:axis] or 0 in sizes or any(not isinstance(size, int) for size in sizes):
        return _WHOLE
    below, inner = (math.prod(int(size) for size in part) for part in (shape[axis + 1 :], onto[axis + 1 :]))
    if len(onto) <= axis or any(bound * below % inner for bound in bounds):
        return _WHOLE
    return axis, sorted({bound * below // inner for bound in bounds})
