"""From FX nodes to expressions: what element ``index`` of a node's value is, in terms of the region's inputs.

Starting at an output, the builder walks back through pointwise operators, views, concatenations and indexed reads. A node
that the ``inline`` policy declines, or that has no rule here, becomes an input that is loaded. Families may ``bind`` a node
to a value of their own (the result of a reduction, say).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.fx
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

from ...exc import UnsupportedError
from ...graph.meta import dim_of, dtype_name, shape_of, target_name, tensor_of
from . import expression as ex
from .expression import Expr
from .operators import ATEN, OPERATORS
from .places import PLACES, writes_one_place
from .rules import RULES
from .views import VIEWS, broadcast

Index = tuple[Expr, ...]
Bound = Callable[[Index], Expr]

_CONSTANTS = {"aten.full.default", "aten.full_like.default", "aten.zeros.default", "aten.ones.default",
              "aten.zeros_like.default", "aten.ones_like.default", "aten.scalar_tensor.default", "prims.iota.default",
              "aten.arange.default", "aten.arange.start", "aten.arange.start_step"}  # fmt: skip
_INDEXED = {"aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.gather.default", "aten.embedding.default",
            "aten.index_select.default", "aten.bucketize.Tensor", "aten.searchsorted.Tensor"}  # fmt: skip


def is_view(node: torch.fx.Node) -> bool:
    return target_name(node) in VIEWS


def is_constant(node: torch.fx.Node) -> bool:
    """A value without inputs (``full``, ``iota``): always recomputed, never loaded."""
    return target_name(node) in _CONSTANTS


def is_pointwise(node: torch.fx.Node) -> bool:
    """One element out of one element of each argument; concatenation and padding count, indexed reads do not."""
    return _has_rule(node) and target_name(node) not in _INDEXED


def is_expressible(node: torch.fx.Node) -> bool:
    return _has_rule(node) or (target_name(node) in VIEWS and _writes_nothing(node.target))


def _has_rule(node: torch.fx.Node) -> bool:
    name = target_name(node)
    if name in PLACES:
        return writes_one_place(node)
    return (name in ATEN or name in RULES) and _writes_nothing(node.target)


@lru_cache(maxsize=4096)
def _writes_nothing(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable


class ExpressionBuilder:
    """Collects the inputs and inlined nodes of one region while building its expressions.

    ``inline(node)`` decides whether an expressible producer is recomputed (True) or loaded. ``inputs`` are in order of
    first load, which is the order of the kernel's inputs. Raises ``UnsupportedError`` for what cannot be expressed.
    """

    def __init__(self, device: str, inline: Callable[[torch.fx.Node], bool]) -> None:
        self.device = device
        self.inline = inline
        self.inputs: list[torch.fx.Node] = []
        self.inlined: dict[torch.fx.Node, None] = {}
        self._bound: dict[torch.fx.Node, Bound] = {}
        self._memo: dict[tuple[torch.fx.Node, Index], Expr] = {}

    def bind(self, node: torch.fx.Node, value: Bound) -> None:
        """From now on ``node`` at ``index`` is ``value(index)``, whatever its operator."""
        self._bound[node] = value

    def build(self, node: torch.fx.Node, index: Index) -> Expr:
        """``node`` at ``index`` (one int64 expression per dimension, within the node's shape)."""
        key = (node, index)
        if key not in self._memo:
            self._memo[key] = self._build(node, index)
        return self._memo[key]

    def load(self, node: torch.fx.Node, index: Index) -> Expr:
        """A read of ``node``'s memory; makes it an input of the region."""
        value = tensor_of(node)
        if value.device.type != self.device:
            raise UnsupportedError("platform", f"{node} is on {value.device.type}, the region on {self.device}")
        name = dtype_name(value.dtype)
        held = "float32" if name in ex.LOW_PRECISION else name
        if held not in (*ex.FLOATS, *ex.INTEGERS, "bool"):
            raise UnsupportedError("dtype", f"{node} has dtype {name}")
        return ex.make("load", held, index, self.input_index(node))

    def address(self, node: torch.fx.Node, index: Index) -> Expr:
        """The load that ``node`` at ``index`` stands for. Looks through views; a computed value becomes an input."""
        while is_view(node) and node not in self._bound and self.inline(node):
            self.inlined[node] = None
            node, index = VIEWS[target_name(node)](node, index)
        return self.load(node, index)

    def input_index(self, node: torch.fx.Node) -> int:
        if node not in self.inputs:
            self.inputs.append(node)
        return self.inputs.index(node)

    def _build(self, node: torch.fx.Node, index: Index) -> Expr:
        if node in self._bound:
            return self._bound[node](index)
        if not is_expressible(node) or not (is_constant(node) or self.inline(node)):
            return self.load(node, index)
        name = target_name(node)
        self.inlined[node] = None
        if name in VIEWS:
            source, mapped = VIEWS[name](node, index)
            return self.build(source, mapped)
        result = self._rule(name, node, index)
        return ex.cast(result, dtype_name(tensor_of(node).dtype))

    def _rule(self, name: str, node: torch.fx.Node, index: Index) -> Expr:
        if name in ATEN:
            return self._apply(ATEN[name], node, index, node.args)
        return (PLACES[name] if name in PLACES else RULES[name])(self, node, index)

    def _apply(self, op: str, node: torch.fx.Node, index: Index, args: Sequence[Any]) -> Expr:
        """``op`` over broadcast ``args`` (nodes or Python numbers), promoted as eager promotes them."""
        held = self._held(op, node, args)
        values = tuple(ex.cast(self.operand(argument, node, index, held), held) for argument in args)
        promotion = OPERATORS[op].promotion
        result = "bool" if promotion in ("compare", "bool") else held
        return ex.make(op, result, values)

    def _held(self, op: str, node: torch.fx.Node, args: Sequence[Any]) -> str:
        promotion = OPERATORS[op].promotion
        if promotion == "bool":
            return "bool"
        if promotion == "compare":
            values = [a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in args]
            kind = ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT
            promoted, _ = elementwise_dtypes(*values, type_promotion_kind=kind)
            name = dtype_name(promoted)
        else:
            name = dtype_name(tensor_of(node).dtype)
        return "float32" if name in ex.LOW_PRECISION else name

    def operand(self, argument: Any, node: torch.fx.Node, index: Index, dtype: str) -> Expr:
        """An argument of a broadcasting operator at ``index`` of its result."""
        if isinstance(argument, torch.fx.Node) and isinstance(argument.meta["val"], torch.Tensor):
            return self.build(argument, broadcast(index, shape_of(argument), shape_of(node)))
        if isinstance(argument, (bool, int, float)):
            return ex.const(argument, dtype)
        return ex.size(dim_of(argument))
