"""Which kernel replaces which values of a graph: a value that travels to the worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..kernel import Kernel
from .region import Region


@dataclass(frozen=True)
class Swap:
    """``kernel`` computes ``outputs`` from ``inputs``, both names of nodes of the graph it goes into.

    Before: ``a → region nodes → b, c``. After: ``a → kevolve::launch → getitem 0 (b), getitem 1 (c)``; the region's own
    nodes are dropped where nothing else needs them.
    """

    kernel: Kernel
    region: Region
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel.to_json(),
            "region": self.region.to_json(),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Swap:
        kernel, region = Kernel.from_json(data["kernel"]), Region.from_json(data["region"])
        return cls(kernel, region, tuple(data["inputs"]), tuple(data["outputs"]))
