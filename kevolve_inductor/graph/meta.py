"""Reading FX nodes' fake tensors without installing guards."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.fx

from ..exc import UnsupportedError
from .dims import Dim
from .region import TensorSpec


def dim_of(value: Any) -> Dim:
    """A size as :data:`Dim`. Raises ``UnsupportedError`` for arithmetic that the size grammar does not hold."""
    if isinstance(value, int):
        return value
    if isinstance(value, torch.fx.Node):
        return dim_of(value.meta["val"])
    if isinstance(value, torch.SymInt):
        expression = value.node.expr
        if expression.is_Integer:
            return int(expression)
        text = str(expression)
        if expression.is_Symbol or all(c.isalnum() or c in "+-* _" for c in text) and "**" not in text:
            return text
        raise UnsupportedError("dynamic", f"size {text} is not a sum of products")
    raise UnsupportedError("dynamic", f"{value!r} is not a size")


def dims_of(values: Any) -> tuple[Dim, ...]:
    return tuple(dim_of(value) for value in values)


def hint_of(value: Any) -> int:
    """The size seen at compile time; reads the hint, so that no guard is installed."""
    if isinstance(value, torch.SymInt):
        hint = value.node.hint
        if hint is None:
            raise UnsupportedError("dynamic", f"size {value.node.expr} has no hint")
        return int(hint)
    return int(value)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor_of(node: torch.fx.Node) -> torch.Tensor:
    """The fake tensor a node stands for. Raises ``UnsupportedError`` where it stands for something else."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise UnsupportedError("structure", f"{node} is not a tensor")
    return value


def spec_of(value: torch.Tensor) -> TensorSpec:
    return TensorSpec(dims_of(value.shape), dims_of(value.stride()), dtype_name(value.dtype), value.device.type)


def shape_of(node: torch.fx.Node) -> tuple[Dim, ...]:
    return dims_of(tensor_of(node).shape)


def hinted_numel(node: torch.fx.Node) -> int:
    total = 1
    for size in tensor_of(node).shape:
        total *= hint_of(size)
    return total


def target_name(node: torch.fx.Node) -> str:
    """``"aten.mul.Tensor"``; the empty string for what is not a call of an operator."""
    return _name(node.target) if node.op == "call_function" else ""


@lru_cache(maxsize=4096)
def _name(target: Any) -> str:
    # Asked some thirty times for every node of a graph; an operator writes its name anew each time.
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return str(getattr(target, "__name__", ""))
