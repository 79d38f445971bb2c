"""Running a candidate under suspicion: poisoned and guard-banded outputs, inputs compared afterwards, everything twice."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch

from ..exc import KernelIndexError
from ..graph.reference import dtype_of
from ..graph.region import ITEM_SIZES, Region
from ..platforms.executor import CompiledKernel, Executor
from .evaluation import Mismatch, Pattern
from .inputs import extent_of, sizes_of

_GUARD_BYTES = 4096
_POISONS = (0xA5, 0x5A)
# Every run counts the same, but a race shows in some of them only.
_REPEATED, _REPEATS = "normal", 5


@dataclass(frozen=True)
class GuardedOutput:
    """An output tensor inside a larger buffer that is filled with one byte value."""

    memory: torch.Tensor
    tensor: torch.Tensor
    poison: int

    def is_overrun(self) -> bool:
        end = self.memory.numel() - _GUARD_BYTES
        return bool((self.memory[:_GUARD_BYTES] != self.poison).any() or (self.memory[end:] != self.poison).any())

    def bits(self) -> torch.Tensor:
        """The elements as bytes, one row per element, in logical order."""
        item = self.tensor.element_size()
        return self.tensor.contiguous().view(-1).view(torch.uint8).reshape(-1, item)


@dataclass(frozen=True)
class Ran:
    """What a candidate returned; ``raised`` where it reported an index out of range and the outputs mean nothing."""

    outputs: tuple[GuardedOutput, ...]
    raised: bool


def run_guarded(
    compiled: CompiledKernel, region: Region, symbols: dict[str, int], inputs: Sequence[torch.Tensor], executor: Executor,
    distribution: str,
) -> Ran | Mismatch:  # fmt: skip
    """Run at least twice, into differently poisoned memory. A :class:`Mismatch` needs no reference to be one."""
    before = [_all_bytes(tensor).clone() for tensor in inputs]
    first: Ran | None = None
    for turn in range(_REPEATS if distribution == _REPEATED else len(_POISONS)):
        poison = _POISONS[turn % len(_POISONS)]
        outputs = [_guarded(region, output, symbols, executor.device, poison) for output in range(len(region.outputs))]
        ran = Ran(tuple(outputs), _call(compiled, region, symbols, inputs, outputs))
        executor.synchronize()
        fault = _overrun(outputs, distribution) or _changed(inputs, before, distribution)
        if fault is None and first is not None and not (first.raised and ran.raised):
            fault = _differing(first, ran, distribution)
        if fault is not None:
            return fault
        first = first or ran
    assert first is not None
    if distribution == _REPEATED and not first.raised:
        return _as_timed(compiled, region, symbols, inputs, first, executor, distribution) or first
    return first


def _as_timed(
    compiled: CompiledKernel, region: Region, symbols: dict[str, int], inputs: Sequence[torch.Tensor], first: Ran,
    executor: Executor, distribution: str,
) -> Mismatch | None:  # fmt: skip
    """Once more as in the clock's loop, where outputs are what the allocator gives: often the last call's, still filled.

    A kernel that finds its work done already would win there, and one that knows poisoned memory would not even work.
    So the last call has seen one element of an input differently, and one element of each output is spoiled since.
    """
    outputs = [executor.allocation(spec, symbols)() for spec in region.output_specs]
    for output, guarded in zip(outputs, first.outputs, strict=True):
        output.copy_(guarded.tensor)
    values = [symbols[name] for name in region.symbol_names]
    changed = next((tensor for tensor in inputs if tensor.is_floating_point() and tensor.numel()), None)
    if changed is not None:
        place = changed[_anywhere(changed)]
        held = place.clone()
        place.copy_(torch.zeros_like(held) if bool(held.isnan()) else held + 1.0)
        with suppress(KernelIndexError):
            compiled(inputs, outputs, values)
        executor.synchronize()
        place.copy_(held)
    for output in outputs:
        if output.numel():
            spoiled = output[_anywhere(output)].view(1).view(torch.uint8)
            spoiled.bitwise_not_()
    compiled(inputs, outputs, values)
    executor.synchronize()
    again = Ran(tuple(GuardedOutput(o, o, first.outputs[k].poison) for k, o in enumerate(outputs)), False)
    fault = _differing(first, again, distribution)
    return None if fault is None else replace(fault, check="as timed", pattern="not repeatable")


def _anywhere(tensor: torch.Tensor) -> tuple[int, ...]:
    """The place of an element that no kernel's author can foresee."""
    return tuple(secrets.randbelow(size) for size in tensor.shape)


def _guarded(region: Region, output: int, symbols: dict[str, int], device: torch.device, poison: int) -> GuardedOutput:
    spec = region.output_specs[output]
    shape, stride = sizes_of(spec, symbols)
    size = extent_of(shape, stride) * ITEM_SIZES[spec.dtype]
    # Whole cache lines, so that the tensor is as aligned as one that the allocator gives; the rest belongs to the guard.
    memory = torch.full((2 * _GUARD_BYTES + size,), poison, dtype=torch.uint8, device=device)
    inner = memory[_GUARD_BYTES : _GUARD_BYTES + size].view(dtype_of(spec.dtype))
    return GuardedOutput(memory, inner.as_strided(shape, stride, inner.storage_offset()), poison)


def _call(
    compiled: CompiledKernel, region: Region, symbols: dict[str, int], inputs: Sequence[torch.Tensor],
    outputs: Sequence[GuardedOutput],
) -> bool:  # fmt: skip
    try:
        compiled(inputs, [output.tensor for output in outputs], [symbols[name] for name in region.symbol_names])
    except KernelIndexError:
        return True
    return False


def _all_bytes(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _overrun(outputs: Sequence[GuardedOutput], distribution: str) -> Mismatch | None:
    for number, output in enumerate(outputs):
        if output.is_overrun():
            return _whole("guard bands", "out of bounds write", distribution, number, output.tensor.numel())
    return None


def _changed(inputs: Sequence[torch.Tensor], before: Sequence[torch.Tensor], distribution: str) -> Mismatch | None:
    for number, (tensor, old) in enumerate(zip(inputs, before, strict=True)):
        if not torch.equal(_all_bytes(tensor), old):
            return _whole("inputs unchanged", "input changed", distribution, number, tensor.numel())
    return None


def _whole(check: str, pattern: Pattern, distribution: str, number: int, total: int) -> Mismatch:
    return Mismatch(check, pattern, distribution, number, 0, total, (), 0.0)


def _differing(first: Ran, second: Ran, distribution: str) -> Mismatch | None:
    if first.raised != second.raised:
        return _whole("repeat", "not repeatable", distribution, 0, first.outputs[0].tensor.numel())
    for number, (one, two) in enumerate(zip(first.outputs, second.outputs, strict=True)):
        ones, twos = one.bits(), two.bits()
        different = (ones != twos).any(-1)
        if different.any():
            untouched = different & (ones == one.poison).all(-1) & (twos == two.poison).all(-1)
            pattern: Pattern = "unwritten" if bool(untouched.any()) else "not repeatable"
            at = int(different.to(torch.uint8).argmax())
            index = tuple(int(k) for k in numpy.unravel_index(at, tuple(one.tensor.shape)))
            count = int(different.sum())
            return Mismatch("two runs", pattern, distribution, number, count, different.numel(), index, 0.0)
    return None


# Outputs travel to the process that knows the reference through a file of plain bytes.


def write_outputs(ran: Ran, path: Path) -> None:
    with path.open("wb") as file:
        for output in ran.outputs:
            file.write(output.bits().cpu().numpy().data)


def read_outputs(region: Region, symbols: dict[str, int], path: Path, device: torch.device) -> list[torch.Tensor]:
    """The written outputs, contiguous. Raises ``ValueError`` where the file has another size than the region says."""
    content = torch.from_numpy(numpy.fromfile(path, dtype=numpy.uint8))
    outputs, at = [], 0
    for spec in region.output_specs:
        shape, _ = sizes_of(spec, symbols)
        size = ITEM_SIZES[spec.dtype] * int(numpy.prod(shape, dtype=numpy.int64))
        piece = content[at : at + size].clone()
        outputs.append(piece.view(dtype_of(spec.dtype)).reshape(shape).to(device))
        at += size
    if at != content.numel():
        raise ValueError(f"{content.numel()} bytes of outputs, not {at}")
    return outputs
