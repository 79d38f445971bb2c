"""The regions of a case as the backend meets them, without any search: for looking at one family's kernels at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.fx
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from kevolve_inductor.graph.discovery import Found, discover
from kevolve_inductor.graph.ranges import propagate, seen_ranges
from kevolve_inductor.platforms.platform import Ceilings
from kevolve_inductor.synthesis.families import FAMILIES

from .cases import Case, Instance

# What regions are ranked by where there is no device to measure.
CEILINGS = Ceilings(4e12, {"bfloat16": 7e14, "float16": 7e14, "float32": 4e14}, 4e-6)


class _Taken(Exception):
    """Compilation has come as far as is needed."""


class _Graphs(CustomGraphPass):
    """Copies every graph where a backend would act, and then goes on only if there are more to come."""

    def __init__(self, is_last: bool) -> None:
        self.graphs: list[torch.fx.Graph] = []
        self._is_last = is_last

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.graphs.append(copy.deepcopy(graph))
        if self._is_last:
            raise _Taken

    def uuid(self) -> None:
        return None


class _OnCpu(TorchFunctionMode):
    """Tensors that are asked for on a GPU are made in main memory: their graphs are the same but for the device."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def instance_of(case: Case, device: str) -> Instance:
    """``case.make(device)``, in main memory where the device is a GPU that is not here."""
    if device != "cuda" or torch.cuda.is_available():
        return case.make(device)
    with _OnCpu():
        return case.make(device)


def regions_of(instance: Instance, device: str, ceilings: Ceilings = CEILINGS) -> list[Found]:
    """The regions of all its graphs (of a trained instance, forward and backward), the most promising first.

    ``device`` is that which families are asked for; the instance's own tensors may be in main memory.
    """
    taken = _Graphs(is_last=not instance.trained)
    seen: list[Any] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        seen.extend(seen_ranges(example_inputs))
        return compile_fx(gm, example_inputs, config_patches={"post_grad_custom_post_pass": taken})

    torch._dynamo.reset()
    with suppress(torch._dynamo.exc.BackendCompilerFailed, _Taken), torch.set_grad_enabled(bool(instance.trained)):
        compiled = torch.compile(instance.function, backend=backend, dynamic=False)
        outputs = compiled(*_inputs(instance))
        if instance.trained:
            _backward(outputs)
    found: list[Found] = []
    for graph in taken.graphs:
        if device == "cuda" and not torch.cuda.is_available():
            _move_to_gpu(graph)
        found += discover(graph, FAMILIES, propagate(graph, seen), ceilings, device).found
    return sorted(found, key=lambda one: -one.promise)


def _move_to_gpu(graph: torch.fx.Graph) -> None:
    """Has a graph of tensors in main memory say that they are on a GPU."""
    mode = FakeTensorMode()

    def moved(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(moved, value))
        if not isinstance(value, torch.Tensor):
            return value
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")

    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = moved(node.meta["val"])
        if node.kwargs.get("device") == torch.device("cpu"):
            node.kwargs = {**node.kwargs, "device": torch.device("cuda")}


def _inputs(instance: Instance) -> list[torch.Tensor]:
    return [
        tensor.detach().requires_grad_() if position in instance.trained else tensor
        for position, tensor in enumerate(instance.inputs)
    ]


def _backward(outputs: Any) -> None:
    several = outputs if isinstance(outputs, tuple | list) else (outputs,)
    traced = [value for value in several if isinstance(value, torch.Tensor) and value.requires_grad]
    torch.autograd.backward(traced, [torch.ones_like(value) for value in traced])
