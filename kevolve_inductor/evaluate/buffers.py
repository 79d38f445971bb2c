"""Memory that betrays whoever strays in it: tensors amid known bytes, or between pages that nobody may touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..graph.dims import evaluate
from ..graph.reference import dtype_of
from ..graph.region import ITEM_SIZES, TensorSpec
from ..kernel import Workspace
from ..platforms.executor import Executor
from .inputs import extent_of, sizes_of

_GUARD_BYTES = 4096
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Guarded:
    """A tensor inside a larger buffer that is filled with one byte value."""

    memory: torch.Tensor
    tensor: torch.Tensor
    start: int
    size: int
    poison: int

    def is_overrun(self) -> bool:
        end = self.start + self.size
        return bool((self.memory[: self.start] != self.poison).any() or (self.memory[end:] != self.poison).any())

    def bits(self) -> torch.Tensor:
        """The elements in logical order, ``[numel]``, as integers of their size."""
        return self.tensor.contiguous().view(-1).view(_INTEGERS[self.tensor.element_size()])

    @property
    def untouched(self) -> int:
        """What :meth:`bits` gives where nothing was written."""
        return int.from_bytes(bytes([self.poison]) * self.tensor.element_size(), "little", signed=True)


class GuardedInput:
    """An input's values amid bytes that differ from run to run, so that a result which depends on them differs as well.

    They stand around the tensor, and between its elements where its strides leave gaps.
    """

    def __init__(self, source: torch.Tensor, memory: torch.Tensor, start: int) -> None:
        self._source, self._memory, self._start = source, memory, start
        self._expected = torch.empty_like(memory)
        self.tensor = self._within(memory, source.shape)

    def _within(self, memory: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        inner = memory[self._start : self._start + _storage_bytes(self._source)].view(self._source.dtype)
        offset = inner.storage_offset() + self._source.storage_offset()
        return inner.as_strided(shape, self._source.stride(), offset)

    def poison(self, value: int) -> None:
        source = self._source
        # An expanded tensor's elements share memory, which may be written once only.
        distinct = [1 if step == 0 else size for size, step in zip(source.shape, source.stride(), strict=True)]
        self._expected.fill_(value)
        self._within(self._expected, distinct).copy_(source.as_strided(distinct, source.stride()))
        self._memory.copy_(self._expected)

    def is_changed(self) -> bool:
        return not torch.equal(self._memory, self._expected)


class Buffers:
    """Allocates what a suspect sees; ``fenced``: each tensor ends where a page begins that must not be touched."""

    def __init__(self, executor: Executor, fenced: bool) -> None:
        self._executor, self._fenced = executor, fenced

    def input(self, source: torch.Tensor) -> GuardedInput:
        return GuardedInput(source, *self._room(_storage_bytes(source)))

    def output(self, spec: TensorSpec, symbols: dict[str, int], poison: int) -> Guarded:
        shape, stride = sizes_of(spec, symbols)
        return self._guarded(shape, stride, extent_of(shape, stride), spec.dtype, poison)

    def workspace(self, workspace: Workspace, symbols: dict[str, int], poison: int) -> Guarded:
        numel = evaluate(workspace.numel, symbols)
        return self._guarded((numel,), (1,), numel, workspace.dtype, poison)

    def _guarded(
        self, shape: tuple[int, ...], stride: tuple[int, ...], extent: int, dtype: str, poison: int
    ) -> Guarded:  # fmt: skip
        size = extent * ITEM_SIZES[dtype]
        memory, start = self._room(size)
        memory.fill_(poison)
        inner = memory[start : start + size].view(dtype_of(dtype))
        return Guarded(memory, inner.as_strided(shape, stride, inner.storage_offset()), start, size, poison)

    def _room(self, size: int) -> tuple[torch.Tensor, int]:
        """Bytes, and where among them ``size`` are to be used."""
        if self._fenced:
            memory = self._executor.fenced(size)
            return memory, memory.numel() - size
        # Whole cache lines, so that the tensor is as aligned as one that the allocator gives; the rest belongs to the guard.
        room = 2 * _GUARD_BYTES + size
        return torch.empty(room, dtype=torch.uint8, device=self._executor.device), _GUARD_BYTES


def lent(
    workspaces: Sequence[Workspace], symbols: dict[str, int], device: torch.device
) -> list[torch.Tensor]:  # fmt: skip
    """Workspaces as an allocator might give them, for several calls in a row."""
    return [torch.empty(evaluate(w.numel, symbols), dtype=dtype_of(w.dtype), device=device) for w in workspaces]


def _storage_bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()
