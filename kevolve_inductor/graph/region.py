"""A region: a piece of a graph as a value, free of names, processes and devices' numbers.

Inputs are called ``i0, i1, …`` in order of first use, nodes ``n0, n1, …`` in topological order, so two equal
pieces of two graphs are equal values with equal digests. A whole graph is a region as well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..kernel import digest_of
from .dims import Dim, evaluate, product

ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Shape, strides (in elements), dtype (``"float32"`` …) and device type (``"cpu"``, ``"cuda"``) of one tensor."""

    shape: tuple[Dim, ...]
    stride: tuple[Dim, ...]
    dtype: str
    device: str

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride):
            raise ValueError(f"{len(self.shape)} sizes but {len(self.stride)} strides")

    @property
    def numel(self) -> Dim:
        return product(self.shape)

    def size_bytes(self, symbols: dict[str, int]) -> int:
        """Bytes of the distinct elements: dimensions expanded with stride 0 count once."""
        sizes = (evaluate(n, symbols) for n, s in zip(self.shape, self.stride, strict=True) if s != 0)
        total = ITEM_SIZES.get(self.dtype, 8)
        for size in sizes:
            total *= size
        return total

    def to_json(self) -> dict[str, Any]:
        return {"shape": self.shape, "stride": self.stride, "dtype": self.dtype, "device": self.device}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        return cls(tuple(data["shape"]), tuple(data["stride"]), data["dtype"], data["device"])


@dataclass(frozen=True)
class RegionNode:
    """One operator call. ``target`` is e.g. ``"aten.topk.default"`` or ``"getitem"``.

    ``args`` and ``kwargs`` are JSON values; a reference to a value is ``{"node": "n3"}``, a symbolic size
    ``{"dim": "s0"}``, a dtype ``{"dtype": "float32"}``, a device ``{"device": "cpu"}``, a non-finite float
    ``{"float": "inf"}``, a memory format or layout ``{"memory_format": …}`` / ``{"layout": …}``.
    ``specs`` describes the result: one entry for a tensor, several for a tuple.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    specs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        specs = [spec.to_json() for spec in self.specs]
        return {"target": self.target, "args": self.args, "kwargs": self.kwargs, "specs": specs}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RegionNode:
        specs = tuple(TensorSpec.from_json(spec) for spec in data["specs"])
        return cls(data["target"], tuple(data["args"]), data["kwargs"], specs)


@dataclass(frozen=True)
class Region:
    """``outputs`` name nodes (``"n4"``) or inputs; ``symbols`` maps each symbol to the (input, dimension) it is read from."""

    inputs: tuple[TensorSpec, ...]
    nodes: tuple[RegionNode, ...]
    outputs: tuple[str, ...]
    symbols: tuple[tuple[str, int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        inputs, nodes = [spec.to_json() for spec in self.inputs], [node.to_json() for node in self.nodes]
        return {"inputs": inputs, "nodes": nodes, "outputs": self.outputs, "symbols": self.symbols}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Region:
        return cls(
            tuple(TensorSpec.from_json(spec) for spec in data["inputs"]),
            tuple(RegionNode.from_json(node) for node in data["nodes"]),
            tuple(data["outputs"]),
            tuple((name, index, dim) for name, index, dim in data["symbols"]),
        )

    @cached_property
    def digest(self) -> str:
        return digest_of(self.to_json())

    @property
    def symbol_names(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.symbols)

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(self.spec(name) for name in self.outputs)

    def spec(self, name: str) -> TensorSpec:
        """The spec of input ``i<k>`` or of single-result node ``n<k>``."""
        position = int(name[1:])
        return self.inputs[position] if name[0] == "i" else self.nodes[position].specs[0]

    @property
    def device(self) -> str:
        return (self.inputs + self.output_specs)[0].device


@dataclass(frozen=True)
class InputRange:
    """What was seen, or must hold, of an integer input: ``low <= value <= high``; ``monotone`` for offsets.

    ``monotone`` offsets start at ``low`` and end at ``high``.
    """

    low: int
    high: int
    monotone: bool = False


@dataclass(frozen=True)
class Workload:
    """From what inputs are regenerated: a size for each symbol, a range per input (``None``: any value), a seed."""

    sizes: tuple[tuple[str, int], ...]
    ranges: tuple[InputRange | None, ...]
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        ranges = tuple(InputRange(**entry) if entry else None for entry in data["ranges"])
        return cls(tuple((name, size) for name, size in data["sizes"]), ranges, data["seed"])

    @property
    def symbols(self) -> dict[str, int]:
        return dict(self.sizes)
