"""Running a candidate under suspicion: poisoned and guard-banded memory, inputs compared afterwards, everything twice."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch

from ..exc import KernelIndexError
from ..graph.reference import dtype_of
from ..graph.region import Region
from ..kernel import Workspace
from ..platforms.executor import CompiledKernel, Executor
from .buffers import Buffers, Guarded, GuardedInput, lent
from .causes import cause_of
from .evaluation import Mismatch, Pattern
from .inputs import BROKEN, FENCED, sizes_of
from .patterns import find_pattern

_POISONS = (0xA5, 0x5A)
# Every run counts the same, but a race shows in some of them only.
_REPEATED, _REPEATS = "normal", 5
# What is changed and spoiled is drawn at random, and a cheat may be lucky once.
_REPEATS_AS_TIMED = 3


@dataclass(frozen=True)
class Ran:
    """What a candidate returned; ``raised`` where it reported an index out of range and the outputs mean nothing."""

    outputs: tuple[Guarded, ...]
    raised: bool


@dataclass(frozen=True)
class Suspect:
    """A candidate that was built, to be run with the sizes of ``symbols``."""

    compiled: CompiledKernel
    workspaces: tuple[Workspace, ...]
    region: Region
    symbols: dict[str, int]
    executor: Executor

    def run(self, inputs: Sequence[torch.Tensor], distribution: str) -> Ran | Mismatch:
        """Run at least twice, amid different bytes. A :class:`Mismatch` needs no reference to be one."""
        buffers = Buffers(self.executor, fenced=distribution in (FENCED, BROKEN))
        guarded = [buffers.input(tensor) for tensor in inputs]
        first: Ran | None = None
        for turn in range(_REPEATS if distribution == _REPEATED else len(_POISONS)):
            ran = self._run_once(guarded, buffers, _POISONS[turn % len(_POISONS)], distribution)
            if isinstance(ran, Mismatch):
                return ran
            if first is not None and not (first.raised and ran.raised):
                fault = _differing(first, ran, distribution)
                if fault is not None:
                    return fault
            first = first or ran
        assert first is not None
        if distribution == _REPEATED and not first.raised:
            tensors = [memory.tensor for memory in guarded]
            faults = (self._as_timed(tensors, first, distribution) for _ in range(_REPEATS_AS_TIMED))
            return next((fault for fault in faults if fault is not None), first)
        return first

    def _run_once(
        self, inputs: Sequence[GuardedInput], buffers: Buffers, poison: int, distribution: str
    ) -> Ran | Mismatch:  # fmt: skip
        for memory in inputs:
            memory.poison(poison)
        outputs = [buffers.output(spec, self.symbols, poison) for spec in self.region.output_specs]
        workspaces = [buffers.workspace(workspace, self.symbols, poison) for workspace in self.workspaces]
        self.executor.dirty_stacks(poison)
        raised = self._call(
            [i.tensor for i in inputs], [o.tensor for o in outputs], [w.tensor for w in workspaces]
        )  # fmt: skip
        self.executor.synchronize()
        for number, output in enumerate((*outputs, *workspaces)):
            if output.is_overrun():
                total = output.tensor.numel()
                return _whole("guard bands", "out of bounds write", distribution, min(number, len(outputs) - 1), total)
        for number, given in enumerate(inputs):
            if given.is_changed():
                return _whole("inputs unchanged", "input changed", distribution, number, given.tensor.numel())
        return Ran(tuple(outputs), raised)

    def _call(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], workspaces: Sequence[torch.Tensor]
    ) -> bool:  # fmt: skip
        """Whether it reported an index out of range."""
        try:
            self.compiled(inputs, outputs, [self.symbols[name] for name in self.region.symbol_names], workspaces)
        except KernelIndexError:
            return True
        return False

    def _as_timed(self, inputs: Sequence[torch.Tensor], first: Ran, distribution: str) -> Mismatch | None:
        """Once more as in the clock's loop, where memory is what the allocator gives: often the last call's, still filled.

        A kernel that finds its work done already would win there, and one that knows poisoned memory would not even work.
        So the last call has seen one element of an input differently, and one element of each output is spoiled since.
        """
        outputs = [self.executor.allocation(spec, self.symbols)() for spec in self.region.output_specs]
        workspaces = lent(self.workspaces, self.symbols, self.executor.device)
        for output, guarded in zip(outputs, first.outputs, strict=True):
            output.copy_(guarded.tensor)
        changed = next((tensor for tensor in inputs if tensor.is_floating_point() and tensor.numel()), None)
        if changed is not None:
            place = changed[_anywhere(changed)]
            held = place.clone()
            place.copy_(torch.zeros_like(held) if bool(held.isnan()) else held + 1.0)
            self._call(inputs, outputs, workspaces)
            self.executor.synchronize()
            place.copy_(held)
        for output in outputs:
            if output.numel():
                spoiled = output[_anywhere(output)].view(1).view(torch.uint8)
                spoiled.bitwise_not_()
        raised = self._call(inputs, outputs, workspaces)
        self.executor.synchronize()
        as_bytes = [replace(guarded, tensor=output) for guarded, output in zip(first.outputs, outputs, strict=True)]
        fault = _differing(first, Ran(tuple(as_bytes), raised), distribution)
        if fault is None:
            return None
        cause = cause_of("as timed", "not repeatable")
        return replace(fault, check="as timed", pattern="not repeatable", likely_cause=cause)


def _anywhere(tensor: torch.Tensor) -> tuple[int, ...]:
    """The place of an element that no kernel's author can foresee."""
    return tuple(secrets.randbelow(size) for size in tensor.shape)


def _whole(check: str, pattern: Pattern, distribution: str, number: int, total: int) -> Mismatch:
    return Mismatch(check, pattern, distribution, number, 0, total, (), 0.0, likely_cause=cause_of(check, pattern))


def _differing(first: Ran, second: Ran, distribution: str) -> Mismatch | None:
    if first.raised != second.raised:
        return _whole("repeat", "not repeatable", distribution, 0, first.outputs[0].tensor.numel())
    for number, (one, two) in enumerate(zip(first.outputs, second.outputs, strict=True)):
        ones, twos = one.bits(), two.bits()
        different = ones != twos
        if different.any():
            untouched = different & (ones == one.untouched) & (twos == two.untouched)
            pattern: Pattern = "unwritten" if bool(untouched.any()) else "not repeatable"
            at = int(different.to(torch.uint8).argmax())
            index = tuple(int(k) for k in numpy.unravel_index(at, tuple(one.tensor.shape)))
            count = int(different.sum())
            place = find_pattern(different.reshape(one.tensor.shape)).words
            cause = cause_of("two runs", pattern)
            return Mismatch(
                "two runs", pattern, distribution, number, count, different.numel(), index, 0.0, place, cause
            )
    return None


# Outputs travel to the process that knows the reference through a file of plain bytes that both map: of gigabytes, every
# further copy takes many times as long as the kernel. The file stays for the next inputs, and its memory with it.


def write_outputs(ran: Ran, path: Path) -> None:
    """Raises ``OSError`` where the file system has no room."""
    parts = [output.bits().view(torch.uint8) for output in ran.outputs]
    total, at = sum(part.numel() for part in parts), 0
    with path.open("ab") as file:
        if file.tell() > total:
            file.truncate(total)
        elif file.tell() < total:
            # Whoever writes to a mapped page that no room is left for is ended.
            os.posix_fallocate(file.fileno(), 0, total)
    content = _mapped(path, total, shared=True)
    for part in parts:
        content[at : at + part.numel()].copy_(part)
        at += part.numel()


def read_outputs(region: Region, symbols: dict[str, int], path: Path, device: torch.device) -> list[torch.Tensor]:
    """The written outputs, contiguous. Raises ``ValueError`` where the file has another size than the region says."""
    shapes = [sizes_of(spec, symbols)[0] for spec in region.output_specs]
    dtypes = [dtype_of(spec.dtype) for spec in region.output_specs]
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in zip(dtypes, shapes, strict=True)]
    written = path.stat().st_size
    if written != sum(sizes):
        raise ValueError(f"{written} bytes of outputs, not {sum(sizes)}")
    pieces = _mapped(path, written, shared=False).split(sizes)
    # Copies, on every device: the process that wrote them can still reach the file.
    return [
        piece.to(device, copy=True).view(dtype).reshape(shape)
        for piece, dtype, shape in zip(pieces, dtypes, shapes, strict=True)
    ]


def _mapped(path: Path, size: int, shared: bool) -> torch.Tensor:
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_file(str(path), shared, size, dtype=torch.uint8)
