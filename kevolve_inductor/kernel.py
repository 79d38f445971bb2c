"""A kernel as data: source text plus a declarative launch, frozen and content-addressed.

Nothing here executes anything. ``platforms`` build a kernel, ``evaluate`` judges it and ``graph.rewrite``
puts it into a graph; all three read the same value.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Language = Literal["cpp", "triton", "aten"]
ArgumentKind = Literal["input", "output", "workspace", "size"]
Constant = int | float | bool | str


@dataclass(frozen=True)
class Argument:
    """One run-time argument: ``index`` counts within the region's inputs, outputs or symbols, or the kernel's workspaces."""

    kind: ArgumentKind
    index: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(ArgumentKind):
            raise ValueError(f"argument kind {self.kind!r} is not one of {get_args(ArgumentKind)}")
        if self.index < 0:
            raise ValueError(f"argument index {self.index} is negative")


@dataclass(frozen=True)
class Launch:
    """One call of one function of the source.

    ``arguments`` are positional, in the order of the function's parameters. For Triton they are followed by
    the ``constants`` (constexpr parameters by name) and ``grid`` holds one to three expressions over the
    region's symbols, in the grammar of :mod:`kevolve_inductor.graph.dims`. For C++ the grid is empty.
    """

    function: str
    arguments: tuple[Argument, ...]
    grid: tuple[str, ...] = ()
    constants: tuple[tuple[str, Constant], ...] = ()
    num_warps: int = 4
    num_stages: int = 2

    def __post_init__(self) -> None:
        if not self.function.isidentifier():
            raise ValueError(f"{self.function!r} is not a function name")
        if len(self.grid) > 3:
            raise ValueError(f"a grid has at most three axes, not {len(self.grid)}")


@dataclass(frozen=True)
class Workspace:
    """Scratch memory between launches: ``numel`` elements (an expression over symbols), zeroed on demand."""

    dtype: str
    numel: str
    zeroed: bool = False


@dataclass(frozen=True)
class Kernel:
    """Source and launches. Equal content, equal ``digest``; no name, author or time is part of it.

    C++: the source defines ``extern "C" int64_t <function>(...)``; each argument is a
    ``const T* __restrict`` (input), ``T* __restrict`` (output, workspace) or ``int64_t`` (size). It returns 0, or 1
    where an index was out of range. bfloat16 and float16 tensors are passed as ``uint16_t`` bit patterns, bool as
    ``uint8_t``.
    Triton: the source holds ``@triton.jit`` functions that use ``tl`` and arithmetic only.
    """

    language: Language
    source: str
    launches: tuple[Launch, ...]
    workspaces: tuple[Workspace, ...] = ()

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            raise ValueError(f"language {self.language!r} is not one of {get_args(Language)}")
        if not self.launches:
            raise ValueError("a kernel has at least one launch")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Kernel:
        """Raises ``ValueError``, ``TypeError`` or ``KeyError`` on anything but what ``to_json`` wrote."""
        launches = tuple(
            Launch(
                function=launch["function"],
                arguments=tuple(Argument(**argument) for argument in launch["arguments"]),
                grid=tuple(launch["grid"]),
                constants=tuple((name, value) for name, value in launch["constants"]),
                num_warps=launch["num_warps"],
                num_stages=launch["num_stages"],
            )
            for launch in data["launches"]
        )
        workspaces = tuple(Workspace(**workspace) for workspace in data["workspaces"])
        return cls(data["language"], data["source"], launches, workspaces)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON, 64 hexadecimal digits."""
        return digest_of(self.to_json())


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
