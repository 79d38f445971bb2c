"""Graphs as the backend meets them: what Inductor's post-grad passes leave of a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass


class _Capture(CustomGraphPass):
    def __init__(self) -> None:
        self.graphs: list[torch.fx.Graph] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.graphs.append(copy.deepcopy(graph))

    def uuid(self) -> None:
        return None


def post_grad_graphs(
    function: Callable[..., Any], inputs: Sequence[Any], *, train: bool = False, dynamic: bool | None = False
) -> list[torch.fx.Graph]:
    """The post-grad graphs of ``function`` on ``inputs``: one per compiled graph, forward before backward.

    Inductor really compiles (and, with ``train``, the sum of the floating outputs is differentiated).
    """
    capture = _Capture()

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        return compile_fx(gm, example_inputs, config_patches={"post_grad_custom_post_pass": capture})

    torch._dynamo.reset()
    with torch.set_grad_enabled(train):
        result = torch.compile(function, backend=backend, dynamic=dynamic)(*inputs)
    if train:
        parts = [result] if isinstance(result, torch.Tensor) else list(result)
        sums = [part.double().sum() for part in parts if part.is_floating_point() and part.requires_grad]
        torch.autograd.backward(torch.stack(sums).sum())
    return capture.graphs
