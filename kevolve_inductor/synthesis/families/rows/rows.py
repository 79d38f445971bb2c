"""The family: finds selections, describes how their programs may be scheduled, and has them printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, cast, get_args

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....kernel import Argument, Kernel, Language, Launch
from ....platforms.platform import Target
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .cpp import cpp_source
from .grow import Grower
from .operators import is_selection
from .program import RowProgram
from .triton import emit_triton


class RowFamily(Family):
    """Selections along an axis, with the reductions, pointwise steps and gathers around them."""

    name: ClassVar[str] = "rows"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        grower = Grower(graph, device)
        taken: set[torch.fx.Node] = set()
        for node in graph.nodes:
            if not is_selection(node) or node in taken:
                continue
            try:
                assembled = grower.program_of(node)
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, (node,))  # type: ignore[arg-type]
                continue
            taken |= assembled.nodes
            yield Match(
                family=self.name,
                nodes=tuple(sorted(assembled.nodes, key=grower.order.__getitem__)),
                inputs=assembled.inputs,
                outputs=assembled.outputs,
                region_class="long tail",
                plan=assembled.program,
                flops=0,
            )

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        program: RowProgram = match.plan
        if language == "cpp":
            arguments = [Argument("input", k) for k in range(len(program.inputs))]
            arguments += [Argument("output", k) for k in range(len(program.outputs))]
            arguments += [Argument("size", k) for k in range(len(program.symbols))]
            return Kernel("cpp", cpp_source(program, schedule), (Launch("kevolve_kernel", tuple(arguments)),))
        return emit_triton(program, schedule)
