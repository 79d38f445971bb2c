"""Forward and backward kernels as a pair, held against finite differences.

The judge knows a region by its own graph: a kernel for a backward region is right where it computes what that region
computes. That the regions belong together it takes for granted. Here a function is compiled for training, kernels are put
into its forward and its backward graph, and the gradient that comes out is compared with central differences of the
function itself in float64, of which no kernel, no captured graph and no derivative formula is a part. So this covers
besides: which values the forward graph keeps and how the backward kernel reads them, captured constants, regions swapped
into the wrong place, and outputs handed back in the wrong order.

Directions are drawn over all elements, over few of them, and over the first and the last ones only, so that a wrong end is
not lost among the others. The functions are smooth where they are evaluated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._inductor.compile_fx import _recursive_post_grad_passes, compile_fx
from torch._inductor.virtualized import V
from torch.nn import functional

from kevolve_inductor.exc import CompilerMissingError
from kevolve_inductor.graph.capture import canonical_kernel
from kevolve_inductor.graph.discovery import discover
from kevolve_inductor.graph.rewrite import apply_swaps
from kevolve_inductor.graph.swap import Swap
from kevolve_inductor.platforms import use_build_folder
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.platform import Ceilings
from kevolve_inductor.synthesis.families import FAMILIES
from kevolve_inductor.synthesis.families.features import places
from kevolve_inductor.synthesis.families.rows import worth

CEILINGS = Ceilings(1e10, {"float32": 1e11, "float64": 5e10}, 1e-6)
# Of the sum of all products of a gradient's elements with a direction's: float32 sums of some thousand terms.
TOLERANCE = 3e-6
STEP = 1e-5

Function = Callable[..., Tensor]
Graphs = list[torch.fx.Graph]


@dataclass(frozen=True)
class Case:
    """``differentiated`` of the inputs get a gradient; ``kernels`` are expected in the forward and the backward graph."""

    function: Function
    inputs: Callable[[], list[Tensor]]
    kernels: tuple[int, int] = (1, 1)
    differentiated: int = 1


def scaled_softmax(x: Tensor, scale: float = 0.125) -> Tensor:
    return torch.softmax(x * scale, -1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.silu(functional.rms_norm(x, x.shape[-1:], weight, 1e-6))


def causal(x: Tensor, weight: Tensor) -> Tensor:
    return functional.silu(functional.conv1d(functional.pad(x, (3, 0)), weight, groups=x.shape[1]))


def averages(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False) * 2


def pooled(table: Tensor, at: Tensor) -> Tensor:
    return functional.embedding(at, table).sum(1)


def discounted(x: Tensor) -> Tensor:
    return torch.cumsum(x * 0.5, -1)


def picked(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with a penalty on the normaliser, as it is often spelled out."""
    normaliser = torch.logsumexp(logits, -1)
    return (normaliser - logits.gather(1, target[:, None])[:, 0]).mean() + 1e-2 * normaliser.square().mean()


def values(*shape: int) -> Tensor:
    return torch.randn(shape)


CASES = {
    "softmax": Case(scaled_softmax, lambda: [values(5, 1300)]),
    "layer norm": Case(layer_norm, lambda: [values(67, 1100), values(1100), values(1100)], differentiated=3),
    "root mean square": Case(rms_norm, lambda: [values(9, 1200), values(1200)], differentiated=2),
    "cross-entropy": Case(
        functional.cross_entropy, lambda: [values(6, 1500), torch.tensor([3, -100, 1499, 0, 7, 7])]
    ),
    "cross-entropy by hand": Case(picked, lambda: [values(6, 1500), torch.randint(0, 1500, (6,))]),
    "depthwise convolution": Case(causal, lambda: [values(2, 6, 131), values(6, 1, 4)], differentiated=2),
    "averages": Case(averages, lambda: [values(2, 3, 30, 41)]),
    "pooled embeddings": Case(pooled, lambda: [values(50, 32), torch.randint(0, 50, (200, 6))]),
    "running sums": Case(discounted, lambda: [values(9, 301)]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_regions_count(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worth, "LEAST_ELEMENTS", 1)
    monkeypatch.setattr(places, "LEAST_PLACED", 1)
    use_build_folder(tmp_path)
    yield
    use_build_folder(None)


def swapped(graph: torch.fx.Graph) -> int:
    """Put the first schedule's kernel of everything that the families find into ``graph``; how many."""
    target = CpuPlatform().target()
    swaps = []
    for found in discover(graph, FAMILIES, {}, CEILINGS, "cpu").found:
        schedule = found.family.space(found.match, target).default
        kernel = canonical_kernel(found.family.emit(found.match, schedule, "cpp"), found.match.inputs)
        swaps.append(Swap(kernel, found.captured.region, found.inputs, found.outputs))
    apply_swaps(graph, swaps)
    return len(swaps)


def trained(
    function: Function, inputs: Sequence[Tensor], directions: Tensor, edit: Callable[[int, torch.fx.Graph], Any]
) -> list[Tensor]:
    """Gradients of ``function(*inputs) · directions``. ``edit`` sees the graphs, numbered, before they run as they are then."""

    number = 0

    def keep(gm: torch.fx.GraphModule, examples: Sequence[Any], **_: Any) -> Callable[[list[Any]], Any]:
        nonlocal number
        with V.set_fake_mode(detect_fake_mode(examples)):
            _recursive_post_grad_passes(gm, is_inference=False)
        edit(number, gm.graph)
        number += 1
        module = torch.fx.GraphModule(gm, gm.graph)

        def run(arguments: list[Any]) -> Any:
            return module(*arguments)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    torch._dynamo.reset()
    compiled = torch.compile(
        function, backend=lambda gm, examples: compile_fx(gm, examples, inner_compile=keep), dynamic=False
    )
    leaves = [value for value in inputs if value.requires_grad]
    return list(torch.autograd.grad(compiled(*inputs), leaves, directions))


def disagreement(
    function: Function, inputs: Sequence[Tensor], directions: Tensor, gradients: Sequence[Tensor]
) -> float:
    """The largest difference to central differences in float64, as a share of what the products' sum may round to."""
    worst = 0.0
    exact = [value.detach().double() if value.is_floating_point() else value for value in inputs]
    for which, gradient in enumerate(gradients):
        for direction in _directions(gradient.numel()):
            step = STEP * direction.view(gradient.shape)
            ends = []
            for sign in (1, -1):
                moved = [value + sign * step if place == which else value for place, value in enumerate(exact)]
                ends.append((function(*moved) * directions.double()).sum())
            slope = (ends[0] - ends[1]).item() / (2 * STEP)
            products = gradient.double().flatten() * direction
            size = products.abs().sum().item() + 1e-3 * gradient.abs().max().item()
            worst = max(worst, abs(products.sum().item() - slope) / size)
    return worst


def _directions(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(2)
    dense = torch.randn(count, dtype=torch.float64, generator=generator)
    yield dense
    for every in (7, 64):
        yield dense * (torch.arange(count) % every == every - 1)
    for few in (1, 17):
        yield dense * (torch.arange(count) < few)
        yield dense * (torch.arange(count) >= count - few)


def prepared(name: str) -> tuple[Case, list[Tensor], Tensor]:
    case = CASES[name]
    torch.manual_seed(0)
    inputs = case.inputs()
    for value in inputs[: case.differentiated]:
        value.requires_grad_()
    with torch.no_grad():
        directions = torch.randn_like(case.function(*inputs))
    return case, inputs, directions


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_kernels_is_the_slope_of_the_function(name: str) -> None:
    case, inputs, directions = prepared(name)
    counts: list[int] = []
    try:
        gradients = trained(case.function, inputs, directions, lambda _, graph: counts.append(swapped(graph)))
    except CompilerMissingError as error:
        pytest.skip(str(error))
    assert tuple(counts) == case.kernels
    assert disagreement(case.function, inputs, directions, gradients) < TOLERANCE


def test_a_backward_kernel_of_another_function_is_noticed() -> None:
    """Either kernel is right for its own region, so the judge would take both."""
    _, inputs, directions = prepared("softmax")
    others: Graphs = []
    wrong = partial(scaled_softmax, scale=0.1251)
    trained(wrong, inputs, directions, lambda _, graph: others.append(copy.deepcopy(graph)))

    def mixed(number: int, graph: torch.fx.Graph) -> None:
        if number == 1:
            replace_graph(graph, others[1])
        assert swapped(graph) == 1

    gradients = trained(scaled_softmax, inputs, directions, mixed)
    assert disagreement(scaled_softmax, inputs, directions, gradients) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["layer norm", "averages", "running sums"])
def test_one_wrong_element_at_an_end_is_noticed(name: str) -> None:
    case, inputs, directions = prepared(name)
    gradients = trained(case.function, inputs, directions, lambda _, graph: None)
    assert disagreement(case.function, inputs, directions, gradients) < TOLERANCE
    for element in (0, -1):
        spoiled = [gradients[0].clone(), *gradients[1:]]
        spoiled[0].view(-1)[element] *= 1.1
        assert disagreement(case.function, inputs, directions, spoiled) > TOLERANCE


def replace_graph(graph: torch.fx.Graph, other: torch.fx.Graph) -> None:
    """Give ``graph`` the nodes of ``other``, whose placeholders are the same."""
    places = graph.find_nodes(op="placeholder")
    for node in reversed([node for node in graph.nodes if node.op != "placeholder"]):
        graph.erase_node(node)
    taken = dict(zip(other.find_nodes(op="placeholder"), places, strict=True))
    graph.output(graph.graph_copy(other, taken))
