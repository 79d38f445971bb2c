"""The family: finding regions, their schedules, and the kernels in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import UnsupportedError
from ....kernel import Kernel, Language
from ....platforms.platform import Target
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .pairs import Constants
from .structure import Products, Reader, Reading, chain_of, find_products, is_interaction


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
                yield self._match(_read(graph, products, device, constants))
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, (products.node,))  # type: ignore[arg-type]

    def _match(self, reading: Reading) -> Match:
        plan = reading.plan
        batch = reading.root.meta["val"].shape[0]
        samples = batch.node.hint if isinstance(batch, torch.SymInt) else batch
        flops = 2 * (samples or 1) * plan.pair_count * plan.shape.width
        return Match(self.name, reading.nodes, reading.inputs, (reading.root,), "long tail", plan, int(flops))

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        raise NotImplementedError

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        raise NotImplementedError


def _read(graph: torch.fx.Graph, products: Products, device: str, constants: Constants) -> Reading:
    """The longest chain that can be read; pairs known at compile time are preferred to pairs loaded at run time.

    Raises ``UnsupportedError`` with the reason for the longest chain where none can.
    """
    chain = chain_of(products)
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
