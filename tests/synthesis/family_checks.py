"""What the tests of several kernel families share: graphs as a backend meets them, kernels run beside eager."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from kevolve_inductor.evaluate.gate import check_kernel
from kevolve_inductor.evaluate.overflow import index_overflow
from kevolve_inductor.exc import BuildError, CompilerMissingError, ResourceError
from kevolve_inductor.graph.capture import canonical_kernel, capture
from kevolve_inductor.graph.reference import to_graph_module
from kevolve_inductor.graph.region import Region
from kevolve_inductor.kernel import Kernel
from kevolve_inductor.platforms.cpu import CpuPlatform, generate_cpp
from kevolve_inductor.platforms.platform import Target
from kevolve_inductor.synthesis.family import Family, Match, Rejection

CPU = Target("cpu", "a chip", ("avx2", "avx512f"), threads=2, units=2, shared_bytes=2**20, warp_size=16)
CUDA = Target("cuda", "a chip", ("sm_90",), threads=0, units=132, shared_bytes=227 * 1024, warp_size=32)
ROOT = Path(__file__).parents[2]
# What every kernel includes.
HEADERS = ("algorithm", "bit", "cmath", "cstdint", "cstdlib", "cstring", "limits")


class _FirstGraph(CustomGraphPass):
    """Stops the compilation where a backend would act; what follows takes longest and is not needed here."""

    graph: torch.fx.Graph | None = None

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.graph = copy.deepcopy(graph)
        raise StopIteration

    def uuid(self) -> None:
        return None


@dataclass(frozen=True)
class Found:
    """The post-grad graph of a function, what a family found in it, and the tensors its placeholders stand for."""

    graph: torch.fx.Graph
    results: list[Match | Rejection]
    examples: dict[str, Any]

    @property
    def matches(self) -> list[Match]:
        return [result for result in self.results if isinstance(result, Match)]

    @property
    def rejections(self) -> list[Rejection]:
        return [result for result in self.results if isinstance(result, Rejection)]

    @property
    def match(self) -> Match:
        """The only one; what else there is would not be faster."""
        assert len(self.matches) == 1 and {one.code for one in self.rejections} <= {"slower"}, self.results
        return self.matches[0]


def find(
    family: Family, function: Callable[..., Any], inputs: Sequence[Any], *, device: str = "cpu", dynamic: bool = False
) -> Found:
    """``dynamic``: the first axis of every input is of dynamic size."""
    first, seen = _FirstGraph(), []

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        seen.extend(example_inputs)
        # On a GPU, what is measured there decides on the padding of products; families are given graphs without it.
        patches = {"post_grad_custom_post_pass": first, "shape_padding": config.force_shape_pad}
        return compile_fx(gm, example_inputs, config_patches=patches)

    torch._dynamo.reset()
    for value in inputs:
        if dynamic:
            torch._dynamo.mark_dynamic(value, 0)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        torch.compile(function, backend=backend, dynamic=None if dynamic else False)(*inputs)
    assert first.graph is not None
    names = [node.name for node in first.graph.find_nodes(op="placeholder")]
    return Found(first.graph, list(family.find(first.graph, device)), dict(zip(names, seen, strict=True)))


class _Recorder(torch.fx.Interpreter):
    def __init__(self, graph: torch.fx.Graph) -> None:
        super().__init__(torch.fx.GraphModule({}, graph))
        self.values: dict[str, Any] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        self.values[node.name] = super().run_node(node)
        return self.values[node.name]


def values_of(found: Found, nodes: Sequence[torch.fx.Node]) -> list[Tensor]:
    """What eager computes for ``nodes`` on the examples."""
    recorder = _Recorder(found.graph)
    with torch.no_grad():
        recorder.run(*found.examples.values())
    return [recorder.values[node.name] for node in nodes]


def region_of(match: Match) -> Region:
    return capture(match.nodes, match.inputs, match.outputs).region


def kernel_of(family: Family, match: Match, schedule: Mapping[str, Any], language: Any = "cpp") -> Kernel:
    kernel = canonical_kernel(family.emit(match, schedule, language), match.inputs)
    check_kernel(kernel)
    return kernel


def schedules_of(family: Family, match: Match, target: Target) -> list[dict[str, Any]]:
    """The default, and every schedule that differs from it in one choice."""
    space = family.space(match, target)
    default = space.default
    others = [{**default, name: value} for name, values in space.choices.items() for value in values[1:]]
    return [default, *others]


def build(family: Family, match: Match, schedule: Mapping[str, Any], folder: Path) -> Callable[..., None]:
    kernel, region = kernel_of(family, match, schedule), region_of(match)
    text = generate_cpp(kernel, region)
    # It is compiled with all of these, whether it asks for them or not.
    assert all(f"#include <{name}>" in text for name in HEADERS)
    try:
        return CpuPlatform().build(kernel, region, folder).call
    except CompilerMissingError as error:
        pytest.skip(str(error))


def fits_gpu(kernel: Kernel, region: Region, folder: Path) -> bool:
    """Would the GPU that is here get to run this? Kernels that are too large, or assembled wrongly, are refused before."""
    from kevolve_inductor.platforms.cuda import architecture
    from kevolve_inductor.platforms.triton_build import compile_for

    try:
        compile_for(kernel, region, architecture(), folder)
    except ResourceError:
        return False
    except BuildError as error:
        if error.stage != "assembler":
            raise
        return False
    return True


def empty_like(value: Tensor) -> Tensor:
    """Memory of the same strides that holds what no kernel writes."""
    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return empty.fill_(bool(value.numel() % 2) if value.dtype is torch.bool else 113)


def run_cpp(
    call: Callable[..., None], inputs: Sequence[Tensor], expected: Sequence[Tensor], *sizes: int
) -> list[Tensor]:
    outputs = [empty_like(value) for value in expected]
    call(*inputs, *outputs, *sizes)
    return outputs


def assert_same(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Integers are equal; sums and functions of floats are as near as another order of operations leaves them."""
    for output, value in zip(outputs, expected, strict=True):
        assert output.dtype == value.dtype and output.stride() == value.stride()
        if not value.is_floating_point():
            assert torch.equal(output, value)
            continue
        loose = value.dtype in (torch.bfloat16, torch.float16)
        tolerance = {"rtol": 2e-2, "atol": 1e-2} if loose else {"rtol": 3e-6, "atol": 1e-4}
        torch.testing.assert_close(output, value, equal_nan=True, **tolerance)


def assert_matches_eager(
    family: Family,
    match: Match,
    inputs: Sequence[Tensor],
    sizes: Sequence[int],
    folder: Path,
    schedule: Mapping[str, Any],
) -> None:
    """The kernel against the region itself, on inputs of any size."""
    expected = to_graph_module(region_of(match))(*inputs)
    assert_same(run_cpp(build(family, match, schedule, folder), inputs, expected, *sizes), expected)


def assert_triton_agrees(family: Family, found: Found, schedules: Sequence[Mapping[str, Any]]) -> None:
    """Under ``TRITON_INTERPRET=1``, on the examples."""
    from kevolve_inductor.platforms.cuda import launch

    match = found.match
    inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
    region = region_of(match)
    symbols = {name: inputs[which].shape[dim] for name, which, dim in region.symbols}
    for schedule in schedules:
        outputs = [empty_like(value) for value in expected]
        kernel = kernel_of(family, match, schedule, "triton")
        assert index_overflow(kernel, region.symbol_names) is None
        launch(kernel, inputs, outputs, symbols)
        assert_same(outputs, expected)


@cache
def _interpreting() -> subprocess.Popen[str]:
    """A process in which Triton interprets kernels, with everything loaded. Each call is made in a copy of it."""
    places = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "quick_interpreter"], stdin=pipe, stdout=pipe, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": places}, start_new_session=True,
    )  # fmt: skip


def interpreted(module: str, function: str) -> None:
    """Call ``module.function()`` of this folder in a process of its own in which Triton interprets kernels."""
    pytest.importorskip("triton")
    process = _interpreting()
    assert process.stdin is not None and process.stdout is not None
    try:
        print(json.dumps([module, function, os.environ["KEVOLVE_STORE"]]), file=process.stdin, flush=True)
        failure = json.loads(process.stdout.readline())
    except BaseException:
        # The next call must not get the answer that this one did not wait for.
        _interpreting.cache_clear()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    assert failure is None, failure
