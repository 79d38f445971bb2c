"""The graph as Dynamo hands it over: torch functions and methods, before AOTAutograd and any decomposition.

Here it is only recognised again. What runs is the graph itself, or what was compiled from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch.fx.node import _get_qualified_name

from ..kernel import digest_of

# Functions that compute, whatever they are called with. Anything else may count, print or talk to other processes.
_COMPUTING = re.compile(r"(torch|torch\.(functional|nn\.functional|special|linalg|fft|_C\._(nn|special|linalg|fft))"
                        r"|torch\.ops\.(aten|prims)(\.\w+)*|_?operator|math|torch\.Tensor)\.\w+|getattr|abs|min|max|pow|round|sum"
                        r"|torch\.amp\.autocast_mode\._(enter|exit)_autocast|torch\._C\._set_grad_enabled")  # fmt: skip
# Of those, what changes the state of a process.
_STATEFUL = re.compile(r"torch\.(set_|manual_seed|seed|_assert|distributed|compile)\w*")


def described(graph: torch.fx.Graph, module: torch.nn.Module) -> list[Any] | None:
    """The graph as a JSON value that is equal in every process, whatever its values are called.

    ``None`` where the graph calls what may do more than compute (an operator from elsewhere, a collective, a submodule), or
    holds a constant that cannot be told from another.
    """
    numbers: dict[torch.fx.Node, int] = {}
    lines: list[Any] = []
    for node in graph.nodes:
        numbers[node] = len(numbers)
        target = _target(node, module)
        if target is None:
            return None
        try:
            lines.append([node.op, target, _plain(node.args, numbers), _plain(node.kwargs, numbers)])
        except ValueError:
            return None
    return lines


def _target(node: torch.fx.Node, module: torch.nn.Module) -> str | None:
    if node.op in ("placeholder", "output"):
        return ""
    if node.op == "call_method":
        return str(node.target)
    if node.op == "get_attr":
        value = getattr(module, str(node.target), None)
        return _constant(value) if isinstance(value, torch.Tensor) else None
    if node.op != "call_function" or not callable(node.target):
        return None
    name = _get_qualified_name(node.target)
    return name if _COMPUTING.fullmatch(name) and not _STATEFUL.fullmatch(name) else None


def _constant(value: torch.Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)} {value.stride()}"


def _plain(value: Any, numbers: Mapping[torch.fx.Node, int]) -> Any:
    """Raises ``ValueError`` for what is no plain value."""
    if isinstance(value, torch.fx.Node):
        return {"node": numbers[value]}
    if isinstance(value, list | tuple):
        return [_plain(entry, numbers) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, numbers) for key, entry in value.items()}
    if isinstance(value, slice):
        return {"slice": _plain((value.start, value.stop, value.step), numbers)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | complex | torch.dtype | torch.device | torch.layout | torch.memory_format):
        return {type(value).__name__: repr(value)}
    if value is Ellipsis:
        return {"slice": "..."}
    raise ValueError(f"{type(value).__name__} is no plain value")


def described_inputs(inputs: Sequence[Any]) -> list[Any] | None:
    """Dtypes, shapes, strides, devices and what requires a gradient; ``None`` where anything but plain tensors is among them,
    or a size is symbolic."""
    described: list[Any] = []
    for value in inputs:
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
            return None
        sizes = [*value.shape, *value.stride()]
        if not all(type(size) is int for size in sizes):
            return None
        described.append(
            [str(value.dtype), list(value.shape), sizes[value.dim() :], value.device.type, value.requires_grad]
        )
    return described


def graph_key(graph: torch.fx.Graph, module: torch.nn.Module, inputs: Sequence[Any]) -> str | None:
    """Digest of graph, inputs and the modes that eager follows; ``None`` where the graph cannot be known again."""
    nodes, tensors = described(graph, module), described_inputs(inputs)
    if nodes is None or tensors is None:
        return None
    autocast = [
        [kind, str(torch.get_autocast_dtype(kind))] for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)
    ]
    modes = {"gradients": torch.is_grad_enabled(), "autocast": autocast}
    return digest_of({"graph": nodes, "inputs": tensors, "modes": modes, "torch": str(torch.__version__)})
