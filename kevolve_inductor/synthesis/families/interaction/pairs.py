"""Which pairs of features are wanted: known when the kernel is written, or read when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ....graph.meta import target_name
from ...expression import expression as ex
from ...expression import is_expressible
from ...expression.expression import Expr

# Index tensors that are made in the graph are small; a larger constant is not worth running here.
_LARGEST_CONSTANT = 1 << 17
_MADE = {"aten.tril_indices.default", "aten.triu_indices.default", "aten.stack.default", "aten.flip.default",
         "aten.unbind.int", "aten.split.Tensor", "aten.split_with_sizes.default", "getitem"}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Columns ``column … column + count`` hold the products of feature ``row`` with ``first … first + count``."""

    column: int
    row: int
    first: int
    count: int


@dataclass(frozen=True)
class KnownPairs:
    runs: tuple[Run, ...]

    @property
    def count(self) -> int:
        return sum(run.count for run in self.runs)


@dataclass(frozen=True)
class LoadedPairs:
    """``left`` and ``right`` are index expressions over the column."""

    left: Expr
    right: Expr
    count: int


Pairs = KnownPairs | LoadedPairs


class Constants:
    """Values of nodes that depend on nothing but constants of the graph, by running them on the CPU."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        self._nodes = _constant_nodes(graph)
        self._values: dict[torch.fx.Node, Any] = {}

    def __contains__(self, node: torch.fx.Node) -> bool:
        return node in self._nodes

    def value(self, node: torch.fx.Node) -> np.ndarray:
        # Inductor's passes run with fake tensors at hand; here real ones are wanted.
        with unset_fake_temporarily(), torch.no_grad():
            value: np.ndarray = self._run(node).numpy()
        return value

    def _run(self, node: torch.fx.Node) -> Any:
        if node not in self._values:
            args = torch.fx.node.map_arg(node.args, self._run)
            kwargs = dict(torch.fx.node.map_arg(node.kwargs, self._run))
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            assert callable(node.target)
            self._values[node] = node.target(*args, **kwargs)
        return self._values[node]

    def closure(self, node: torch.fx.Node) -> set[torch.fx.Node]:
        """``node`` and everything it is made of."""
        found: set[torch.fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current not in found:
                found.add(current)
                stack.extend(current.all_input_nodes)
        return found


def _constant_nodes(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    found: set[torch.fx.Node] = set()
    for node in graph.nodes:
        made = is_expressible(node) or target_name(node) in _MADE
        if made and all(source in found for source in node.all_input_nodes) and _is_small(node):
            found.add(node)
    return found


def _is_small(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    parts = value if isinstance(value, (tuple, list)) else [value]
    return all(isinstance(part, torch.Tensor) and _is_small_tensor(part) for part in parts)


def _is_small_tensor(value: torch.Tensor) -> bool:
    return not any(isinstance(size, torch.SymInt) for size in value.shape) and value.numel() <= _LARGEST_CONSTANT


def table(values: np.ndarray, index: tuple[Expr, ...]) -> Expr:
    """``values`` at ``index``, as a leaf that only :func:`evaluated` understands."""
    content = (values.shape, tuple(values.reshape(-1).tolist()))
    return ex.make("table", "int64", index, content)


def is_known(expr: Expr) -> bool:
    """Can :func:`evaluated` give numbers, with values for the variables alone?"""
    operators = {
        "const",
        "var",
        "add",
        "sub",
        "mul",
        "idiv",
        "imod",
        "table",
        "check_index",
        "as_value",
        "within",
        "cast",
    }
    return all(part.op in operators for part in ex.walk(expr))


def evaluated(expr: Expr, values: dict[str, np.ndarray]) -> np.ndarray:
    """An index expression for arrays of its variables' values. Raises ``IndexError`` where an index is out of range."""
    args = [evaluated(argument, values) for argument in expr.args]
    match expr.op:
        case "const":
            return np.asarray(expr.value)
        case "var":
            return values[expr.value[0]]
        case "add":
            return args[0] + args[1]
        case "sub":
            return args[0] - args[1]
        case "mul":
            return args[0] * args[1]
        case "idiv":
            return args[0] // args[1]
        case "imod":
            return args[0] % args[1]
        case "table":
            shape, content = expr.value
            return np.asarray(content).reshape(shape)[tuple(args)]
        case "check_index":
            extent, wrap = expr.value
            at = np.where((args[0] < 0) & wrap, args[0] + extent, args[0])
            if ((at < 0) | (at >= extent)).any():
                raise IndexError("index out of range")
            return at
        case "within":
            return np.clip(args[0], 0, expr.value[0] - 1)
    return args[0]


def runs_of(left: np.ndarray, right: np.ndarray, most: int) -> tuple[Run, ...] | None:
    """Pairs as runs along one feature, of the orientation with fewer; ``None`` where that takes more than ``most``.

    Products commute, so that a list ordered by its second feature is as good as one ordered by its first.
    """
    candidates = [tuple(_runs(left, right)), tuple(_runs(right, left))]
    best = min(candidates, key=len)
    return best if len(best) <= most else None


def _runs(rows: np.ndarray, others: np.ndarray) -> Iterator[Run]:
    if rows.size == 0:
        return
    breaks = np.flatnonzero((np.diff(rows) != 0) | (np.diff(others) != 1)) + 1
    edges = [0, *breaks.tolist(), int(rows.size)]
    for start, end in zip(edges, edges[1:], strict=False):
        yield Run(start, int(rows[start]), int(others[start]), end - start)
