"""The tasks of a region: read off its outputs part by part, and fused where they read the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch.fx

from ....exc import UnsupportedError
from ....graph.meta import shape_of, spec_of, target_name, tensor_of
from ....graph.region import TensorSpec
from ...expression import ExpressionBuilder, is_pointwise
from ...expression import expression as ex
from ...expression.access import accesses, flatten, offset_of
from ...expression.expression import Expr
from ...expression.loops import Axis, Store, Task

# A task with more results than this would hold too much in registers.
MOST_STORES = 8


def sink_tasks(
    builder: ExpressionBuilder, node: torch.fx.Node, output: int, inlined: set[torch.fx.Node]
) -> Iterator[Task]:
    """The tasks that compute ``node``: one, or one per part where it is made of concatenated parts.

    Values still hold loads; ``flattened`` is applied when all inputs are known.
    """
    shape = shape_of(node)
    strides = spec_of(tensor_of(node)).stride
    dim, bounds = split_points(node, inlined)
    for low, high in pairwise(bounds):
        index: list[Expr] = []
        axes: list[Axis] = []
        for position, size in enumerate(shape):
            start, extent = (low, high - low) if position == dim else (0, size)
            at = ex.index(0) if extent == 1 else ex.var(f"x{position}", extent)
            axes += [] if extent == 1 else [(f"x{position}", extent)]
            index.append(ex.iadd(at, ex.index(start)))
        offset = ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(index, strides, strict=True)])
        yield Task(tuple(axes), (Store(builder.build(node, tuple(index)), offset, output),))


def split_points(node: torch.fx.Node, inlined: set[torch.fx.Node]) -> tuple[int, list[int]]:
    """The axis along which ``node`` is concatenated and where its parts meet; ``(-1, [0, 1])`` where it is of one piece."""
    shape = shape_of(node)
    found: dict[int, set[int]] = {}
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if target_name(current) == "aten.cat.default":
            axis, points = _joints(current)
            found.setdefault(axis, set()).update(points)
            continue
        if is_pointwise(current):
            for source in current.all_input_nodes:
                if source not in seen and source in inlined and shape_of(source) == shape:
                    seen.add(source)
                    stack.append(source)
    if len(found) != 1:
        return -1, [0, 1]
    ((axis, joints),) = found.items()
    return axis, sorted(joints)


def _joints(node: torch.fx.Node) -> tuple[int, list[int]]:
    rank = len(shape_of(node))
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    axis = int(given) % rank  # type: ignore[call-overload,arg-type]
    points = [0]
    for part in node.args[0]:  # type: ignore[union-attr]
        shape = shape_of(part)  # type: ignore[arg-type]
        size = shape[axis] if len(shape) == rank else 0
        if not isinstance(size, int):
            raise UnsupportedError("dynamic", "concatenation along a dynamic axis")
        points.append(points[-1] + size)
    return axis, sorted(set(points))


def flattened(task: Task, inputs: Sequence[TensorSpec]) -> Task:
    stores = tuple(Store(flatten(s.value, inputs), flatten(s.offset, inputs), s.output) for s in task.stores)
    return Task(task.axes, stores)


def fused(tasks: Iterable[Task]) -> list[Task]:
    """Tasks over the same space that read the same elements become one, so that what they share is computed once."""
    result: list[Task] = []
    homes: dict[tuple[tuple[Axis, ...], Expr], int] = {}
    for task in tasks:
        reads = [(task.axes, access) for access in accesses(task.values) if ex.variables(offset_of(access))]
        home = next((homes[read] for read in reads if read in homes and _fits(result[homes[read]], task)), None)
        if home is None:
            home = len(result)
            result.append(task)
            homes.update(dict.fromkeys(reads, home))
        else:
            result[home] = Task(task.axes, result[home].stores + task.stores)
            homes.update({read: home for read in reads if read not in homes})
    return result


def _fits(home: Task, task: Task) -> bool:
    written = {store.output for store in home.stores}
    return len(home.stores) < MOST_STORES and written.isdisjoint(store.output for store in task.stores)
