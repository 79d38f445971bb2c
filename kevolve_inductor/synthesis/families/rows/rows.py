"""The family: finds selections and has their programs scheduled and printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import product
from ....graph.meta import hinted_numel
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression.printer import operator_flops
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from ..common import arguments_of
from .assemble import Assembled
from .cpp import cpp_source
from .grow import Grower, effective_users, fuses
from .operators import is_reduction, is_selection
from .program import Element, RowProgram, passes
from .spaces import MOST_REDUCED, check_size, cpp_space, triton_space
from .triton import emit_triton

_FUNCTION = "kevolve_kernel"
# Rows of up to this many elements Inductor keeps in registers while it needs them (its persistent reductions).
_LONGEST_HELD = 1024
_LEAST_REREAD = 1 << 20


class RowFamily(Family):
    """Selections along an axis (top-k, sort, arg-max …) with the reductions, pointwise steps and gathers around them;
    on GPUs also reductions of long rows whose results are applied to them (softmax, normalisations, their gradients).
    """

    name: ClassVar[str] = "rows"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        grower = Grower(graph, device)
        taken: set[torch.fx.Node] = set()
        for node in graph.nodes:
            if not is_selection(node) or node in taken:
                continue
            try:
                found = grower.program_of(node)
                check_size(found.program, device)
            except UnsupportedError as error:
                yield Rejection(error.code, error.message, self.name, (node,))  # type: ignore[arg-type]
                continue
            taken |= found.nodes
            yield self._match(found, grower)
        if device != "cpu":
            yield from self._reductions(graph, grower, taken)

    def _reductions(self, graph: torch.fx.Graph, grower: Grower, taken: set[torch.fx.Node]) -> Iterator[Match]:
        """Long rows that are reduced and then read again, which Inductor does by reading them again from memory."""
        for node in graph.nodes:
            if not is_reduction(node) or node in taken:
                continue
            try:
                found = grower.program_of(node)
            except UnsupportedError:
                continue
            if not found.nodes & taken and _is_reread(found):
                taken |= found.nodes
                yield self._match(found, grower)

    def _match(self, found: Assembled, grower: Grower) -> Match:
        return Match(
            family=self.name,
            nodes=tuple(sorted(found.nodes, key=grower.order.__getitem__)),
            inputs=found.inputs,
            outputs=found.outputs,
            region_class="long tail" if found.program.selects else "hot",
            plan=found.program,
            flops=_flops(found),
        )

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        program: RowProgram = match.plan
        return triton_space(program, target) if target.platform in ("cuda", "hip") else cpp_space(program, target)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        program: RowProgram = match.plan
        if language != "cpp":
            return emit_triton(program, schedule)
        arguments = arguments_of(program.inputs, program.outputs, program.symbols)
        return Kernel("cpp", cpp_source(program, schedule), (Launch(_FUNCTION, arguments),))


def _is_reread(found: Assembled) -> bool:
    """Whether rows too long for Inductor to hold, and of a size that counts, are swept more than once."""
    program = found.program
    if not _LONGEST_HELD < program.columns <= MOST_REDUCED or sum(bool(one.sweep) for one in passes(program)) < 2:
        return False
    return max(hinted_numel(node) for node in found.inputs) >= _LEAST_REREAD and _stands_alone(found)


def _stands_alone(found: Assembled) -> bool:
    """Whether Inductor would not compute what comes before or after in the same kernel, which a swap would keep apart."""
    before = [node for node in found.inputs if node.op == "call_function" and fuses(node)]
    after = [
        user for node in found.outputs for user in effective_users(node) if user not in found.nodes and fuses(user)
    ]
    return not before and not after


def _flops(found: Assembled) -> int:
    """Floating-point operations of what is computed; comparisons are not counted."""
    program = found.program
    total = 0
    for step in (*program.statements, *program.stores):
        if not isinstance(step, Element):
            extent = program.axes[step.axis] if step.axis is not None else 1
            total += extent * operator_flops(step.value)
    stored = product(tuple(program.axes[store.axis] if store.axis else 1 for store in program.stores[:1]))
    rows = max((hinted_numel(node) for node in found.outputs[:1]), default=0) // max(1, int(stored))
    return total * rows
