"""The family: finding the gradients of interactions, their schedules, and the kernels in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.meta import tensor_of
from ....kernel import Kernel, Language
from ....platforms.platform import Target
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .cpp import cpp_space, emit_cpp
from .structure import Reading, find_sums, read
from .triton import emit_triton, triton_space


class PairGradientsFamily(Family):
    """What the gradient of ``(X @ X.T)[:, i, j]`` is with respect to ``X``."""

    name: ClassVar[str] = "pair gradients"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        for found in find_sums(graph):
            if tensor_of(found.node).device.type != device:
                continue
            try:
                yield self._match(read(graph, found, device))
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, (found.node,))  # type: ignore[arg-type]

    def _match(self, reading: Reading) -> Match:
        plan = reading.plan
        # Any algorithm multiplies each pair's gradient with either of its rows.
        flops = 4 * reading.samples * plan.pairs * plan.width
        return Match(self.name, reading.nodes, reading.inputs, (reading.root,), "long tail", plan, flops)

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        return (triton_space if target.platform in ("cuda", "hip") else cpp_space)(match.plan, target)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        if language == "cpp":
            return emit_cpp(match.plan, schedule)
        if language == "triton":
            return emit_triton(match.plan, schedule)
        raise EmissionError(f"no {language} kernel for this family")
