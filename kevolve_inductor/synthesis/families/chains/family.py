"""The family: finding chains, their schedules, and their kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.cost import estimate_s, least_bytes
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from ..common import arguments_of, in_graph_order
from ..products import is_product
from .cost import CEILINGS, VENDOR_FLOAT32_FLOPS_PER_S
from .cpp import check_pools, cpp_space, source_of
from .grow import Chain, Grower
from .plan import ChainPlan, Pool, Reduce
from .spaces import rank, triton_space
from .triton import emit_triton

# By so much the model may be wrong when it says that one kernel is slower than several at the limits of the chip.
_UNSURE = 1.25


class ChainsFamily(Family):
    """Matrix products one after another whose intermediate values are small enough to stay on the chip."""

    name: ClassVar[str] = "chains"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        grower = Grower(graph, device)
        taken: set[torch.fx.Node] = set()
        for seeds in grower.seeds():
            if taken & set(seeds):
                continue
            try:
                chain = grower.chain_of(seeds, taken)
                if chain is None:
                    continue
                match = self._match(graph, chain, device)
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, seeds)  # type: ignore[arg-type]
                continue
            taken |= chain.nodes
            yield match

    def _match(self, graph: torch.fx.Graph, chain: Chain, device: str) -> Match:
        """Raises ``UnsupportedError`` where the chain does not fit on the chip, or gains nothing there."""
        nodes, plan = in_graph_order(graph, chain.nodes), chain.plan
        match = Match(self.name, nodes, chain.inputs, chain.outputs, "hot", plan, plan.flops)
        if device == "cpu":
            check_pools(plan)
        else:
            self._check_gain(match)
        return match

    def _check_gain(self, match: Match) -> None:
        ranked = rank(match.plan, _moved(match))
        if not ranked:
            raise UnsupportedError("size", "what the chain holds exceeds registers or shared memory")
        launches = sum(map(is_product, match.nodes))
        alone = sum(estimate_s(node, CEILINGS) for node in match.nodes) + launches * CEILINGS.launch_s
        written = match.plan.written
        # What is estimated node by node takes the rate of 16-bit products for all of them.
        if written is not None and written.dtype == "float32":
            alone = max(alone, written.flops / VENDOR_FLOAT32_FLOPS_PER_S)
        best = ranked[0].cost.seconds + CEILINGS.launch_s
        # What several sums over one axis cost elsewhere is not modelled: they may be far from what memory allows.
        if best > _UNSURE * alone and not match.plan.pools:
            raise UnsupportedError("slower", f"{best * 1e6:.0f} us on the chip, {alone * 1e6:.0f} us one after another")

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        on_gpu = target.platform in ("cuda", "hip")
        return triton_space(match.plan, _moved(match)) if on_gpu else cpp_space(match.plan, target)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: ChainPlan = match.plan
        arguments = arguments_of(plan.inputs, plan.outputs, plan.symbols)
        if language == "triton":
            chosen = plan if schedule.get("regrouped", True) else plan.written or plan
            return emit_triton(chosen, arguments, schedule)
        if language == "cpp" and all(isinstance(step, Pool | Reduce) for step in plan.steps):
            return Kernel("cpp", source_of(plan, schedule), (Launch("kevolve_kernel", arguments),))
        raise EmissionError(f"no {language} kernel for chains of products")


def _moved(match: Match) -> int:
    return least_bytes(match.inputs, match.nodes, match.outputs)
