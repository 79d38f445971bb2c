"""The last word on a swap: the whole graph under plain Inductor against the same graph with the kernels in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch._inductor.inductor_prims  # registers operators that a post-grad graph may hold

from ..graph.reference import evaluate_fp64, to_graph_module
from ..graph.region import Region
from ..graph.rewrite import apply_swaps
from ..graph.selection import is_selection
from ..platforms import use_build_folder
from ..platforms.executor import Executor
from .baselines import compile_inductor, with_fake_values
from .evaluation import GraphVerdict, ModeTimes
from .inputs import GRAPH, generate
from .job import GraphJob
from .timing import race

logger = logging.getLogger(__name__)

# Both graphs' intermediate results and one set of inputs and outputs must fit.
_MEMORY_SHARE = 0.4
# Inductor reorders floating-point work between two compilations of a graph, so its own results are no sharper. A share of
# each value, and as much of the output's typical one: what cancels keeps the errors of what it was made from.
_RELATIVE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
_RELATIVE_OTHERWISE = 1e-2
_TIED_SHARE = 0.01


def check(job: GraphJob, executor: Executor, seed: int, folder: Path) -> dict[str, Any]:
    """The verdict as JSON. What fails without the swaps is no fault of theirs."""
    use_build_folder(folder)
    needed = sum(spec.size_bytes(job.workload.symbols) for spec in (*job.graph.inputs, *job.graph.output_specs))
    if needed > _MEMORY_SHARE * executor.free_bytes():
        return asdict(GraphVerdict(None, None, True, f"does not fit twice in memory ({needed / 2**30:.1f} GiB)"))
    try:
        inputs = generate(job.graph, job.workload, GRAPH, seed, executor.device)
        plain = _runner(job, executor, inputs, swapped=False)
        torch.manual_seed(seed)
        expected = _Expected(job, inputs, plain())
    except Exception as error:  # noqa: BLE001 - a graph that cannot be rebuilt here leaves its swaps unmeasured, not wrong
        return asdict(GraphVerdict(None, None, True, _words("the graph alone", error)))
    try:
        swapped = _runner(job, executor, inputs, swapped=True)
        torch.manual_seed(seed)
        difference = expected.difference(swapped())
        executor.synchronize()
    except torch.OutOfMemoryError as error:
        # The plain graph's results and memory are still held.
        return asdict(GraphVerdict(None, None, True, _words("both graphs at once", error)))
    except Exception as error:  # noqa: BLE001 - whatever the swapped graph raises, it must not be used
        return asdict(GraphVerdict(None, None, False, _words("the swapped graph", error)))
    if difference is not None:
        return asdict(GraphVerdict(None, None, False, difference))
    times_us = race(executor, {"inductor": executor.timed(plain), "kevolve": executor.timed(swapped)})
    return asdict(GraphVerdict(times_us["inductor"], times_us["kevolve"], True))


def time_mode(
    job: GraphJob, settings: Mapping[str, Any], executor: Executor, seed: int, folder: Path
) -> dict[str, Any]:
    """The :class:`ModeTimes` as JSON; raises what the graph alone raises under Inductor's defaults."""
    use_build_folder(folder)
    inputs = generate(job.graph, job.workload, GRAPH, seed, executor.device)
    plain = _runner(job, executor, inputs, swapped=False)
    torch.manual_seed(seed)
    expected = _Expected(job, inputs, plain())
    calls = {"inductor_us": plain}
    others: list[tuple[str, bool, Mapping[str, Any]]] = [("mode_us", False, settings)]
    if job.swaps:
        others += [("kevolve_us", True, {}), ("kevolve_mode_us", True, settings)]
    for name, swapped, chosen in others:
        try:
            call = _runner(job, executor, inputs, swapped, chosen)
            torch.manual_seed(seed)
            if expected.difference(call()) is None:
                calls[name] = call
            executor.synchronize()
        except Exception as error:  # noqa: BLE001 - a mode that fails on this graph is one that is not taken
            logger.debug("%s: %s", name, error)
    return asdict(ModeTimes(**race(executor, {name: executor.timed(call) for name, call in calls.items()})))


def _words(what: str, error: Exception) -> str:
    # The first line says what failed and, where another process reports it, the last one why.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"
    return f"not measured: {what}: {type(error).__name__}: {said}"[:500]


def _runner(
    job: GraphJob,
    executor: Executor,
    inputs: Sequence[torch.Tensor],
    swapped: bool,
    settings: Mapping[str, Any] | None = None,
) -> Callable[[], Sequence[Any]]:
    module = to_graph_module(job.graph, executor.device, job.workload.symbols)
    with_fake_values(module, inputs)
    if swapped:
        apply_swaps(module.graph, job.swaps)
        module.recompile()
    compiled = compile_inductor(module, inputs, settings)
    written = _writes_inputs(job.graph)

    def call() -> Sequence[Any]:
        # A graph may update buffers in place; every call starts from the same ones.
        return compiled([tensor.clone() for tensor in inputs] if written else inputs)

    return call


def _writes_inputs(graph: Region) -> bool:
    names = (node.target.split(".")[1] if "." in node.target else "" for node in graph.nodes)
    return any(name.endswith("_") and not name.startswith("_") for name in names)


def _has_selection(graph: Region) -> bool:
    return any(is_selection(node.target) for node in graph.nodes)


@dataclass
class _Expected:
    """What Inductor alone makes of a graph's inputs."""

    job: GraphJob
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[Any]

    def difference(self, got: Sequence[Any]) -> str | None:
        """What differs, in words, but for what ``got`` has nearer to the values in float64."""
        may_tie = _has_selection(self.job.graph)
        difference = first_difference(self.outputs, got, may_tie)
        if difference is None or self._exact is None:
            return difference
        return first_difference(self.outputs, got, may_tie, self._exact)

    @cached_property
    def _exact(self) -> Sequence[Any] | None:
        try:
            return evaluate_fp64(self.job.graph, self.inputs).exact
        except Exception as error:  # noqa: BLE001 - without these values a difference stands
            logger.debug("the graph in float64: %s", error)
            return None


def first_difference(
    expected: Sequence[Any], got: Sequence[Any], may_tie: bool, exact: Sequence[Any] | None = None
) -> str | None:
    """What differs more than two compilations of the same graph may, in words; ``None`` where nothing does.

    Where the graph selects, a few elements may follow another choice among ties. What is as near to the ``exact`` values as
    what was expected is no difference.
    """
    allowed = _TIED_SHARE if may_tie else 0.0
    for number, (want, have) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(want, torch.Tensor):
            continue
        if want.shape != have.shape or want.dtype != have.dtype:
            return f"output {number} is {have.dtype} of {tuple(have.shape)}, not {want.dtype} of {tuple(want.shape)}"
        wrong = _different(want, have)
        if exact is not None and want.is_floating_point():
            wrong &= ~(_distance(have, exact[number]) <= _distance(want, exact[number]))
        if may_tie and want.dim() and not want.is_floating_point() and bool(wrong.any()):
            # Among equal scores any order is right; the chosen positions are the same but for ties at the border.
            wrong = want.sort(-1).values != have.sort(-1).values
        share = float(wrong.double().mean()) if wrong.numel() else 0.0
        limit = max(allowed, _TIED_SHARE) if not want.is_floating_point() else allowed
        if share > limit:
            return f"output {number} differs in {share:.2%} of its elements"
    return None


def _distance(values: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    return (values.double() - exact).abs()


def _different(want: torch.Tensor, have: torch.Tensor) -> torch.Tensor:
    if not want.is_floating_point():
        return want != have
    relative = _RELATIVE.get(want.dtype, _RELATIVE_OTHERWISE)
    exact = want.double()
    finite = exact[exact.isfinite()]
    typical = float(finite.abs().mean()) if finite.numel() else 0.0
    allowed = relative * (exact.abs() + typical)
    same = (want == have) | (want.isnan() & have.isnan())
    return ~same & ~((have.double() - exact).abs() <= allowed)
