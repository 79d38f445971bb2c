"""The family of scans: running sums, products, extremes and logarithms of sums of exponentials along one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch.fx

from ....exc import EmissionError, UnsupportedError
from ....graph.meta import hint_of, tensor_of
from ....kernel import Kernel, Language, Launch
from ....platforms.platform import Target
from ...expression.printer import operator_flops
from ...family import Family, Match, Rejection, Schedule, ScheduleSpace
from .. import common
from ..cores import cores_of, regions_around
from .cpp import source_of
from .plan import ScanPlan
from .structure import Surroundings, is_scan, read
from .triton import kernel_of
from .triton_space import gpu_space

# Fewer elements than this are not worth a kernel of their own.
_LEAST_ELEMENTS = 1024
# On a GPU a single line longer than this is left to eager, which goes over it once, where nothing is computed with it.
_LONGEST_ALONE = 2**23
# On a CPU lines shorter than this are never cut into parts.
_LONG = 8192
_LANES = (2048, 1024, 512, 256, 128)
# Steps of one position: of a sum, and of a logarithm of a sum of exponentials.
_FLOPS = {"sum": 1, "product": 1, "maximum": 1, "minimum": 1, "logsumexp": 24}


class ScansFamily(Family):
    name: ClassVar[str] = "scans"

    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        cores = cores_of(graph, is_scan, device)
        if cores:
            yield from regions_around(
                cores, Surroundings(graph), device, self.name, _match, lambda match: _unfit(match, device)
            )

    def space(self, match: Match, target: Target) -> ScheduleSpace:
        plan: ScanPlan = match.plan
        sizes = _hints(plan, match)
        length = sizes[plan.scan[0]]
        lines = math.prod(sizes.values()) // max(length, 1)
        if target.platform == "cpu":
            return _cpu_space(plan, lines, length, target.threads)
        return gpu_space(plan, lines, length, target)

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        plan: ScanPlan = match.plan
        arguments = common.arguments_of(plan.inputs, plan.outputs, plan.symbols)
        if language == "cpp":
            return Kernel("cpp", source_of(plan, schedule), (Launch("kevolve_kernel", arguments),))
        if language == "triton":
            return kernel_of(plan, arguments, schedule)
        raise EmissionError(f"no {language} kernels of scans")


def _cpu_space(plan: ScanPlan, lines: int, length: int, threads: int) -> ScheduleSpace:
    choices: dict[str, tuple[int | str | bool, ...]] = {}
    lane = plan.task.lane
    if lane is None:
        units = lines
        choices["columns"] = (512, 256, 1024, 2048)
    else:
        extent = min(lane[1], lines) if isinstance(lane[1], int) else lines
        blocks = {lanes: lines // extent * -(-extent // lanes) for lanes in _LANES}
        # The widest blocks of which there are enough for all threads.
        widths = sorted(_LANES, key=lambda lanes: (blocks[lanes] < 2 * threads, -lanes))
        if all(count < 2 * threads for count in blocks.values()):
            widths.reverse()
        units = blocks[widths[0]]
        choices["lanes"] = tuple(widths)
    # Where lines do not keep all threads busy, each is cut into as many parts as there are threads.
    is_few = units < threads and length >= _LONG
    choices["parts"] = (threads, 1, 4 * threads) if is_few else (1,)
    choices["order"] = ("static", "dynamic")
    return common.seeded(choices, {"parts": 1}, {"lanes": 512}, {"lanes": 2048}, {"columns": 1024})


def _match(around: Surroundings, core: torch.fx.Node, device: str, alone: bool) -> Match:
    reader, outputs = read(around, core, device, alone)
    if not outputs:
        raise UnsupportedError("structure", f"nothing of {core} is used")
    plan = reader.plan(outputs)
    if any(common.elements(node) == math.inf for node in (*reader.builder.inputs, *outputs)):
        raise UnsupportedError("dynamic", "a size depends on data")
    nodes = common.in_graph_order(around.graph, [*reader.builder.inlined, *reader.used])
    steps = operator_flops(plan.body) + _FLOPS[plan.kind] + sum(operator_flops(store.value) for store in plan.stores)
    extents = [extent for _, extent in (plan.scan, *plan.axes)]
    # What is dynamic counts as one, since a floor must not be too high.
    flops = steps * math.prod(extent for extent in extents if isinstance(extent, int))
    return Match(ScansFamily.name, nodes, tuple(reader.builder.inputs), tuple(outputs), "long tail", plan, flops)


def _hints(plan: ScanPlan, match: Match) -> dict[str, int]:
    """Extents at the sizes seen, by axis."""
    core = next(node for node in match.nodes if is_scan(node))
    source = tensor_of(core.args[0])  # type: ignore[arg-type]
    sizes = {f"x{d}": hint_of(size) for d, size in enumerate(source.shape)}
    return {name: sizes[name] for name, _ in (plan.scan, *plan.axes)}


def _unfit(match: Match, device: str) -> Rejection | None:
    plan: ScanPlan = match.plan
    sizes = _hints(plan, match)
    total, length = math.prod(sizes.values()), sizes[plan.scan[0]]
    if total == 0:
        return Rejection("size", "nothing to compute", match.family, match.nodes)
    if total < _LEAST_ELEMENTS:
        return Rejection("size", f"{total} elements are too few for a kernel of their own", match.family, match.nodes)
    if device != "cpu" and total == length > _LONGEST_ALONE and len(match.nodes) == 1:
        return Rejection("size", f"one line of {length} positions is read twice here", match.family, match.nodes)
    return None
