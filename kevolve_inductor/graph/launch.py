"""One operator, ``kevolve::launch``, stands in a graph for every swapped region; Inductor lowers it to a direct call.

The lowering writes the kernel's full source into Inductor's wrapper, so that a compiled graph loaded from Inductor's own
cache in another process needs neither this table nor the store. C++ becomes one call of a compiled function with raw
pointers; Triton becomes a kernel of the wrapper itself. Unlike the functional higher-order operator for user kernels
this tells Inductor which buffers are written instead of having it guess from the kernel's intermediate code, which fails
for kernels that select among pointers and then marks every input as mutated.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..exc import SwapError
from ..kernel import Kernel, digest_of
from ..platforms.cpu import generate_cpp, load_cpp
from .dims import Dim, evaluate
from .region import Region, TensorSpec

_LIBRARY: Any = torch.library.Library("kevolve", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("launch(Tensor[] inputs, SymInt[] sizes, str program) -> Tensor[]")


@dataclass(frozen=True)
class Program:
    """A kernel with the region it replaces, which types its arguments and results."""

    kernel: Kernel
    region: Region

    @property
    def digest(self) -> str:
        return digest_of({"kernel": self.kernel.digest, "region": self.region.digest})


_PROGRAMS: dict[str, Program] = {}
_LOWERED = threading.Lock()
_lowering_registered = False


def register_program(program: Program) -> str:
    """Make ``program`` known to this process and return the digest that names it in graphs."""
    _PROGRAMS[program.digest] = program
    return program.digest


def program_of(digest: str) -> Program:
    try:
        return _PROGRAMS[digest]
    except KeyError:
        raise SwapError(f"kernel program {digest} is not known to this process; compile the model again") from None


def resolve(dim: Dim, symbols: Sequence[str], sizes: Sequence[Any]) -> Any:
    """``dim`` under the given sizes, which may be symbolic themselves."""
    return evaluate(dim, dict(zip(symbols, sizes, strict=True)))


def empty_outputs(program: Program, sizes: Sequence[Any], device: torch.device) -> list[torch.Tensor]:
    """Uninitialised results, with the strides the region's values had."""
    names = program.region.symbol_names
    return [
        torch.empty_strided(
            [resolve(size, names, sizes) for size in spec.shape],
            [resolve(stride, names, sizes) for stride in spec.stride],
            dtype=dtype_of(spec),
            device=device,
        )
        for spec in program.region.output_specs
    ]


def dtype_of(spec: TensorSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


@torch.library.register_fake("kevolve::launch", lib=_LIBRARY)  # type: ignore[untyped-decorator,unused-ignore]
def _fake(inputs: Sequence[torch.Tensor], sizes: Sequence[Any], program: str) -> list[torch.Tensor]:
    known = program_of(program)
    device = inputs[0].device if inputs else torch.device(known.region.device)
    return empty_outputs(known, sizes, device)


def _run(inputs: Sequence[torch.Tensor], sizes: Sequence[int], program: str) -> list[torch.Tensor]:
    """Outside Inductor, as when a graph is looked at node by node."""
    known = program_of(program)
    device = inputs[0].device if inputs else torch.device(known.region.device)
    outputs = empty_outputs(known, sizes, device)
    if known.kernel.language == "cpp":
        load_cpp(generate_cpp(known.kernel, known.region))(*inputs, *outputs, *sizes)
    else:
        # Triton is loaded where there is something for it to run on.
        from ..platforms.cuda import launch

        launch(known.kernel, inputs, outputs, dict(zip(known.region.symbol_names, sizes, strict=True)))
    return outputs


_LIBRARY.impl("launch", _run, "CompositeExplicitAutograd")


def register_lowering() -> None:
    """Teach Inductor the operator, once. Deferred because importing Inductor's lowerings takes seconds."""
    global _lowering_registered
    with _LOWERED:
        if _lowering_registered:
            return
        from . import lowering

        lowering.register()
        _lowering_registered = True
