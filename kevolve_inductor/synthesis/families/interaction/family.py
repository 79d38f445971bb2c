"""The family: finding regions, their schedules, and the kernels in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.meta import shape_of
from ....kernel import Kernel, Language
from ....platforms.platform import Target
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .cpp import emit_cpp
from .pairs import Constants
from .schedules import cpp_space, triton_space
from .structure import Products, Reader, Reading, chain_of, find_products, is_interaction
from .triton import LARGEST_TILE, emit_triton


class InteractionFamily(Family):
    """``cat([dense, (X @ X.T)[:, i, j]])`` and its kin."""

    name: ClassVar[str] = "interaction"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        constants: Constants | None = None
        for products in find_products(graph):
            if products.node.meta["val"].device.type != device:
                continue
            constants = constants or Constants(graph)
            try:
                yield self._match(_read(graph, products, device, constants), device)
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, (products.node,))  # type: ignore[arg-type]

    def _match(self, reading: Reading, device: str) -> Match:
        plan = reading.plan
        if device != "cpu" and plan.shape.features > LARGEST_TILE:
            raise UnsupportedError("size", f"{plan.shape.features} features do not fit into one tile")
        batch = reading.root.meta["val"].shape[0]
        samples = batch.node.hint if isinstance(batch, torch.SymInt) else batch
        flops = 2 * (samples or 1) * plan.pair_count * plan.shape.width
        return Match(self.name, reading.nodes, reading.inputs, (reading.root,), "long tail", plan, int(flops))

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        return (triton_space if target.platform in ("cuda", "hip") else cpp_space)(match.plan, target)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        if language == "cpp":
            return emit_cpp(match.plan, schedule)
        if language == "triton":
            return emit_triton(match.plan, schedule)
        raise EmissionError(f"no {language} kernel for this family")


def _read(graph: torch.fx.Graph, products: Products, device: str, constants: Constants) -> Reading:
    """The longest chain that can be read; pairs known at compile time are preferred to pairs loaded at run time.

    Raises ``UnsupportedError`` with the reason for the longest chain where none can.
    """
    chain = chain_of(products)
    if any(isinstance(size, str) for size in shape_of(products.node)[1:]):
        raise UnsupportedError("dynamic", f"{products.source} has a dynamic number of features")
    if not is_interaction(products, chain):
        raise UnsupportedError("structure", "nothing is selected from the products")
    first: UnsupportedError | None = None
    while is_interaction(products, chain):
        for fold in (True, False):
            try:
                return Reader(graph, products, chain, device, constants, fold).read()
            except UnsupportedError as error:
                first = first or error
        if len(chain) == 1:
            break
        chain = chain[:-1]
    assert first is not None
    raise first
