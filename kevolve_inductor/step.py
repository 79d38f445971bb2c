"""One step of a compiled function, forward and backward, on inputs of its own: what can be run again beside the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

Function = Callable[..., Any]


class Step:
    """One call of a function and, where gradients are wanted, its backward."""

    def __init__(self, function: Function, inputs: Sequence[torch.Tensor]) -> None:
        self._function, self._inputs = function, inputs
        self._trained = [tensor for tensor in inputs if tensor.requires_grad] if torch.is_grad_enabled() else []
        self._gradients: list[torch.Tensor] = []

    def __call__(self) -> object:
        results = self._function(*self._inputs)
        outputs = [value for value in results if isinstance(value, torch.Tensor) and value.requires_grad]
        if not self._trained or not outputs:
            return results
        if not self._gradients:
            self._gradients = [torch.randn_like(output) for output in outputs]
        return torch.autograd.grad(outputs, self._trained, self._gradients, allow_unused=True)

    def writes_inputs(self) -> bool:
        """Whether this step, run eagerly, changes its inputs in place; true where nobody can tell (inference mode)."""
        if any(tensor.is_inference() for tensor in self._inputs):
            return True
        before = [tensor._version for tensor in self._inputs]
        self()
        return before != [tensor._version for tensor in self._inputs]


def bytes_of(inputs: Sequence[torch.Tensor]) -> int:
    """Of the memory behind ``inputs``, counted once where they share it."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in inputs}
    return sum(storages.values())


def copies_of(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of the same strides and values, which share memory where the originals do: a graph may write to its inputs."""
    memory: dict[int, torch.UntypedStorage] = {}
    copies = []
    with torch.no_grad():
        for tensor in inputs:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in memory:
                memory[storage.data_ptr()] = storage.clone()
            own = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            own.set_(memory[storage.data_ptr()], tensor.storage_offset(), tensor.shape, tensor.stride())
            copies.append(own.requires_grad_(tensor.requires_grad))
    return copies


def random_state_kept(inputs: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
    devices = {tensor.device.index for tensor in inputs if tensor.device.type == "cuda"}
    kept: AbstractContextManager[None] = torch.random.fork_rng(devices=sorted(devices))
    return kept
