"""The families: they find selections and reductions, and have their programs scheduled and printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
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
from .component import Component
from .cpp import cpp_source
from .cpp_columns import CppColumns
from .grow import Grower
from .operators import as_reduction, is_reduction, is_selection, is_whole_reduction
from .program import Element, RowProgram
from .spaces import check_size, cpp_space, triton_space
from .triton import emit_triton
from .worth import check_worth, is_along_memory, is_large

_FUNCTION = "kevolve_kernel"


class _RowPrograms(Family):
    """What families of row programs share: they differ in what they look for."""

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        program: RowProgram = match.plan
        return triton_space(program, target) if target.platform in ("cuda", "hip") else cpp_space(program, target)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        program: RowProgram = match.plan
        if language != "cpp":
            return emit_triton(program, schedule)
        source = cpp_source(program, schedule)
        workspaces = CppColumns(program).workspaces if program.column_sums else ()
        arguments = arguments_of(program.inputs, program.outputs, program.symbols, len(workspaces))
        return Kernel("cpp", source, (Launch(_FUNCTION, arguments),), workspaces)

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

    def _rejection(self, error: UnsupportedError, node: torch.fx.Node) -> Rejection:
        return Rejection(error.code, error.message, self.name, (node,))  # type: ignore[arg-type]


class RowFamily(_RowPrograms):
    """Selections along an axis (top-k, sort, arg-max …) with the reductions, pointwise steps and gathers around them."""

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
                yield self._rejection(error, node)
                continue
            taken |= found.nodes
            yield self._match(found, grower)


class ReductionFamily(_RowPrograms):
    """Reductions of rows whose results are applied to them (softmax, normalisations, cross-entropy), and their gradients
    with those of weights: rows that are read again, and sums over all rows of what is computed from them.

    It comes after the families that compute a reduction together with a matrix product or a look-up.
    """

    name: ClassVar[str] = "reductions"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        anchors = [node for node in graph.nodes if is_reduction(node) and is_large(node)]
        # What ends in a number comes last, and on a CPU its one row is no work for several threads.
        ends = [node for node in graph.nodes if device != "cpu" and is_whole_reduction(node) and is_large(node)]
        if not (anchors or ends):
            return
        component = Component(graph, device)
        taken: set[torch.fx.Node] = set()
        # Rows along which memory runs come first: the same values may also be seen as many short rows across it.
        for node in (*sorted(anchors, key=lambda node: not is_along_memory(node)), *ends):
            if node in taken:
                continue
            try:
                with as_reduction(node) if node in ends else nullcontext():
                    found = component.program_of(node)
                    check_worth(found, component, device)
            except UnsupportedError as error:
                yield self._rejection(error, node)
                continue
            if not found.nodes & taken:
                taken |= found.nodes
                yield self._match(found, component)


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
