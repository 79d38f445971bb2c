"""Stencils: which graphs are taken, and whether their kernels compute what eager computes."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from family_checks import (
    CPU,
    CUDA,
    Found,
    assert_matches_eager,
    assert_same,
    assert_triton_agrees,
    build,
    empty_like,
    find,
    interpreted,
    kernel_of,
    region_of,
    run_cpp,
    schedules_of,
    values_of,
)
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv2d,
    conv3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    pad,
    relu,
    relu6,
    silu,
)

from kevolve_inductor.evaluate.closeness import allowed_error
from kevolve_inductor.evaluate.correctness import Agreed, Judge
from kevolve_inductor.evaluate.inputs import distributions_for, generate
from kevolve_inductor.exc import EmissionError
from kevolve_inductor.graph.reference import evaluate_fp64
from kevolve_inductor.graph.region import Workload
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.cuda import launch
from kevolve_inductor.synthesis.families.stencils import StencilsFamily
from kevolve_inductor.synthesis.family import Rejection

FAMILY = StencilsFamily()
ATEN: Any = torch.ops.aten


def finite(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def tied(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Few distinct numbers, NaNs and infinities among them: whole windows are equal, or not numbers."""
    values = finite(*shape).round()
    flat = values.view(-1)
    flat[3::53] = math.nan
    flat[5::31] = -math.inf
    flat[6::31] = -math.inf
    flat[7::47] = math.inf
    return values.to(dtype)


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


# --- spellings -------------------------------------------------------------------------------------------------------


def causal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return silu(conv1d(pad(x, (weight.shape[-1] - 1, 0)), weight, bias, groups=x.shape[1]))


def causal_by_slicing(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return silu(conv1d(x, weight, bias, padding=weight.shape[-1] - 1, groups=x.shape[1])[..., : x.shape[-1]])


def causal_of_sequences(x: Tensor, weight: Tensor) -> Tensor:
    """Channels come last, as in a sequence model."""
    mixed = conv1d(x.transpose(1, 2), weight, padding=3, groups=x.shape[2])[..., : x.shape[1]]
    return silu(mixed).transpose(1, 2) * x


def with_residual(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y = conv2d(x * 2, weight, bias, padding=1, groups=x.shape[1])
    return y, relu(y) + x


def depthwise(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return conv2d(x, weight, groups=x.shape[1], **options) * 0.5


def inverted_residual(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mixed = conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])
    return relu6(mixed * scale[:, None, None] + shift[:, None, None])


def padded_average(x: Tensor) -> Tensor:
    return avg_pool2d(pad(x, (1, 2, 0, 1)), 3, 2)


def padded_maximum(x: Tensor) -> Tensor:
    return max_pool2d(pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)


def average_gradient(rank: int, *arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
    operator = getattr(ATEN, f"avg_pool{rank}d_backward")
    return lambda gradient, x: operator(gradient * 2, x, *arguments)


def convolution_gradient(
    stride: int, padding: int, dilation: int = 1, mask: tuple[bool, bool, bool] = (True, True, True)
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    def gradients(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        each = [[number] * (weight.dim() - 2) for number in (stride, padding, dilation, 0)]
        groups = weight.shape[0]
        results = ATEN.convolution_backward(gradient * 2, x, weight, [groups], *each[:3], False, each[3], groups, mask)
        return tuple(result for result in results if result is not None)

    return gradients


def causal_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Of the convolution of a padded line; the padding's part is cut off."""
    whole, *rest = convolution_gradient(1, 0, mask=(True, True, False))(gradient, pad(x, (3, 0)), weight)
    return pad(whole, (-3, 0)), *rest


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]


def depthwise_case(channels: int, size: int, taps: int = 3, multiplier: int = 1, **options: Any) -> Case:
    weights = (channels * multiplier, 1, taps, taps)
    return Case(
        lambda x, w: depthwise(x, w, **options), lambda: [finite(2, channels, size, size + 2), finite(*weights)]
    )


CASES: dict[str, Case] = {
    "causal": Case(causal, lambda: [finite(2, 6, 131), finite(6, 1, 4), finite(6)]),
    "causal bfloat16": Case(causal, lambda: [finite(2, 6, 131, dtype=torch.bfloat16),
                                             finite(6, 1, 4, dtype=torch.bfloat16),
                                             finite(6, dtype=torch.bfloat16)]),
    "causal by slicing": Case(causal_by_slicing, lambda: [finite(2, 6, 131), finite(6, 1, 4), finite(6)]),
    "causal of sequences": Case(causal_of_sequences, lambda: [finite(2, 131, 6), finite(6, 1, 4)]),
    "plane with residual": Case(with_residual, lambda: [finite(2, 5, 17, 19), finite(5, 1, 3, 3), finite(5)]),
    "plane float16": Case(lambda x, w: depthwise(x, w, padding=1),
                          lambda: [finite(2, 5, 17, 19, dtype=torch.float16), finite(5, 1, 3, 3, dtype=torch.float16)]),
    "plane float64": Case(lambda x, w: depthwise(x, w, padding=1),
                          lambda: [finite(2, 5, 17, 19, dtype=torch.float64), finite(5, 1, 3, 3, dtype=torch.float64)]),
    "channels last": Case(lambda x, w: depthwise(x, w, padding=1, stride=2),
                          lambda: [channels_last(finite(2, 72, 11, 13)), finite(72, 1, 3, 3)]),
    "strided": depthwise_case(5, 20, padding=1, stride=2),
    "dilated": depthwise_case(5, 20, padding=2, dilation=2),
    "uneven": depthwise_case(5, 20, padding=(2, 0), stride=(1, 3), dilation=(3, 1)),
    "wide": depthwise_case(4, 24, taps=7, padding=3),
    "narrower than its window": Case(lambda x, w: depthwise(x, w, padding=3),
                                     lambda: [finite(20, 5, 6, 3), finite(5, 1, 7, 7)]),
    "several results of a channel": depthwise_case(5, 20, multiplier=3, padding=1),
    "volume": Case(lambda x, w: relu(conv3d(x, w, padding=1, groups=3)),
                   lambda: [finite(2, 3, 7, 8, 9), finite(3, 1, 3, 3, 3)]),
    "without a batch": Case(lambda x: avg_pool2d(x, 3, 1, 1), lambda: [finite(5, 20, 31)]),
    "average of a line": Case(lambda x: avg_pool1d(x, 4, 2, 1) - 1, lambda: [finite(3, 5, 200)]),
    "average of a plane": Case(lambda x: avg_pool2d(x, 3, 2, 1), lambda: [finite(2, 5, 33, 31)]),
    "average of what is there": Case(lambda x: avg_pool2d(x, 3, 2, 1, True, False), lambda: [finite(2, 5, 33, 32)]),
    "average beyond the end": Case(lambda x: avg_pool2d(x, 3, 2, 1, True), lambda: [finite(2, 5, 34, 32)]),
    "average by another divisor": Case(lambda x: avg_pool2d(x, 2, divisor_override=3), lambda: [finite(2, 5, 34, 32)]),
    "average of a volume": Case(lambda x: avg_pool3d(x, (2, 3, 3), (2, 1, 2), (0, 1, 1)), lambda: [finite(2, 3, 8, 9, 11)]),
    "average, channels last": Case(lambda x: avg_pool2d(x, 3, 1, 1, False, False),
                                   lambda: [channels_last(finite(2, 40, 9, 7))]),
    "average, padded": Case(padded_average, lambda: [finite(2, 5, 30, 32)]),
    "large averages": Case(lambda x: avg_pool2d(x, 11), lambda: [finite(20, 5, 44, 48, dtype=torch.bfloat16)]),
    "every other line": Case(lambda x: avg_pool2d(x[:, ::2, :, 1::2], 3, 1, 1), lambda: [finite(2, 6, 20, 40)]),
    "maximum of a line": Case(lambda x: max_pool1d(x, 3, 2, 1, return_indices=True), lambda: [tied(3, 5, 200)]),
    "maximum of a plane": Case(lambda x: max_pool2d(x, 3, 2, 1, ceil_mode=True), lambda: [tied(2, 5, 34, 32)]),
    "maximum and where": Case(lambda x: max_pool2d(x, 3, 2, 1, return_indices=True), lambda: [tied(2, 5, 33, 31)]),
    "maximum, dilated": Case(lambda x: max_pool2d(x, 3, 1, 1, 2, return_indices=True), lambda: [tied(2, 5, 20, 31)]),
    "maximum, channels last": Case(lambda x: max_pool2d(x, 2, 2, return_indices=True),
                                   lambda: [channels_last(tied(2, 40, 18, 14))]),
    "maximum of a volume": Case(lambda x: max_pool3d(x, 3, 2, 1, return_indices=True), lambda: [tied(2, 6, 13, 9, 11)]),
    "maximum, padded": Case(padded_maximum, lambda: [tied(2, 5, 32, 30, dtype=torch.bfloat16)]),
    "gradient of averages": Case(average_gradient(2, [3, 3], [2, 2], [1, 1], False, True, None),
                                 lambda: [finite(2, 5, 16, 15), finite(2, 5, 32, 30)]),
    "gradient of averages of what is there": Case(average_gradient(2, [3, 3], [2, 2], [1, 1], True, False, None),
                                                  lambda: [finite(2, 5, 15, 15), finite(2, 5, 29, 29)]),
    "gradient of halves": Case(average_gradient(2, [2, 2], [], [0, 0], False, True, None),
                               lambda: [finite(2, 5, 16, 15), finite(2, 5, 32, 31)]),
    "gradient of averages of a volume": Case(average_gradient(3, [3, 2, 1], [2, 1, 1], [1, 0, 0], False, True, 5),
                                             lambda: [finite(2, 3, 6, 7, 8), finite(2, 3, 12, 8, 8)]),
    "gradients of a causal line": Case(causal_gradient, lambda: [finite(2, 6, 130), finite(2, 6, 130), finite(6, 1, 4)]),
    "gradients of a plane": Case(convolution_gradient(1, 1),
                                 lambda: [finite(2, 5, 18, 19), finite(2, 5, 18, 19), finite(5, 1, 3, 3)]),
    "gradients of a strided plane bfloat16": Case(convolution_gradient(2, 1), lambda: [
        finite(2, 5, 9, 10, dtype=torch.bfloat16), finite(2, 5, 18, 20, dtype=torch.bfloat16),
        finite(5, 1, 3, 3, dtype=torch.bfloat16)]),
    "gradients, channels last": Case(convolution_gradient(1, 2, 2, (True, True, False)), lambda: [
        channels_last(finite(2, 72, 9, 10)), channels_last(finite(2, 72, 9, 10)), finite(72, 1, 3, 3)]),
    "gradients of a volume's weight": Case(convolution_gradient(2, 1, 1, (False, True, True)), lambda: [
        finite(4, 3, 4, 4, 6), finite(4, 3, 8, 8, 11), finite(3, 1, 3, 3, 3)]),
}  # fmt: skip
_FOUND: dict[str, Found] = {}


def found_of(name: str) -> Found:
    if name not in _FOUND:
        _FOUND[name] = find(FAMILY, CASES[name].function, CASES[name].inputs())
    return _FOUND[name]


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_spelling_is_found_whole(name: str) -> None:
    found = found_of(name)
    views = ("squeeze", "permute")
    left = [n.name for n in found.graph.nodes if n.op == "call_function" and n not in found.match.nodes]
    # A second result's last view costs nothing where it is.
    assert all(name.startswith(views) for name in left) and len(left) <= 2
    assert len(region_of(found.match).nodes) == len(found.match.nodes)


def test_padding_is_read_as_a_border_even_if_it_is_needed_elsewhere() -> None:
    def saved(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        wide = pad(x, (3, 0))
        return conv1d(wide, weight, groups=x.shape[1]), wide

    match = find(FAMILY, saved, [finite(2, 6, 130), finite(6, 1, 4)]).match
    assert all(node.op == "placeholder" for node in match.inputs) and len(match.outputs) == 1


def test_costly_sources_are_left_to_their_producer() -> None:
    cheap = find(FAMILY, lambda x: avg_pool2d(x * 2, 3, 1, 1), [finite(2, 5, 20, 20)]).match
    costly = find(FAMILY, lambda x: avg_pool2d(silu(x), 3, 1, 1), [finite(2, 5, 20, 20)]).match
    once = find(FAMILY, lambda x: avg_pool2d(silu(x), 2), [finite(2, 5, 40, 40)]).match
    assert [node.op for match in (cheap, once) for node in match.inputs] == ["placeholder"] * 2
    assert [node.op for node in costly.inputs] == ["call_function"]


def test_what_is_read_in_another_order_stays_outside() -> None:
    afters: list[Callable[[Tensor], Tensor]] = [
        lambda y: y.sum(1),
        lambda y: torch.roll(y, 1, 2) + 1,
        lambda y: y + y.transpose(2, 3),
        lambda y: y[None] * y[:, None],
    ]
    for after in afters:
        found = find(FAMILY, lambda x: after(avg_pool2d(x, 2)), [finite(4, 4, 40, 40)])  # noqa: B023 - called at once
        assert [node.name for node in found.match.outputs] == ["avg_pool2d"]


def test_two_stencils_in_a_row_are_two_regions() -> None:
    def twice(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return relu(depthwise(relu(depthwise(x, first, padding=1)), second, padding=1))

    found = find(FAMILY, twice, [finite(2, 5, 20, 20), finite(5, 1, 3, 3), finite(5, 1, 3, 3)])
    assert len(found.matches) == len(found.results) == 2
    assert found.matches[1].inputs[0] in found.matches[0].outputs


@pytest.mark.parametrize(
    "function, inputs, code",
    [
        (lambda x, w: conv2d(x, w, groups=2), [finite(2, 4, 20, 20), finite(4, 2, 3, 3)], "structure"),
        (lambda x: avg_pool2d(x, 20), [finite(9, 200, 20, 20)], "size"),
        (lambda x: avg_pool2d(x, 2), [finite(1, 2, 20, 20)], "size"),
        (average_gradient(2, [2, 2], [2, 2], [0, 0], False, True, None),
         [finite(1, 2, 2, 2).long(), finite(1, 2, 4, 4).long()], "dtype"),
    ],
)  # fmt: skip
def test_rejections_say_why(function: Callable[..., Any], inputs: list[Tensor], code: str) -> None:
    (rejection,) = find(FAMILY, function, inputs).results
    assert isinstance(rejection, Rejection) and rejection.code == code and rejection.message


def test_convolutions_that_mix_channels_are_not_looked_at() -> None:
    assert not find(FAMILY, lambda x, w: conv2d(x, w), [finite(2, 4, 20, 20), finite(4, 4, 3, 3)]).results


# --- gradients of maxima ---------------------------------------------------------------------------------------------


def maximum_and_gradient(
    rank: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool = False
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    arguments = (kernel, stride, padding, [1] * rank, ceil)
    forward, backward = (getattr(ATEN, f"max_pool{rank}d_with_indices{which}") for which in ("", "_backward"))

    def both(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        values, where = forward(x, *arguments)
        return values, backward(gradient * 2, x, *arguments, where)

    return both


GRADIENTS = {
    "overlapping": Case(maximum_and_gradient(2, [3, 3], [2, 2], [1, 1]), lambda: [tied(2, 5, 32, 30), finite(2, 5, 16, 15)]),
    "odd": Case(maximum_and_gradient(2, [3, 3], [2, 2], [1, 1], True), lambda: [tied(2, 5, 33, 31), finite(2, 5, 17, 16)]),
    "side by side": Case(maximum_and_gradient(2, [2, 2], [2, 2], [0, 0]), lambda: [tied(2, 5, 32, 32), finite(2, 5, 16, 16)]),
    "every place": Case(maximum_and_gradient(2, [3, 2], [1, 1], [1, 0]), lambda: [tied(2, 5, 20, 21), finite(2, 5, 20, 20)]),
    "halves": Case(maximum_and_gradient(2, [3, 3], [2, 2], [1, 1]), lambda: [
        tied(2, 5, 32, 32, dtype=torch.bfloat16), finite(2, 5, 16, 16, dtype=torch.bfloat16)]),
    "volume": Case(maximum_and_gradient(3, [3, 3, 3], [2, 2, 2], [1, 1, 1]), lambda: [
        tied(2, 3, 14, 13, 12), finite(2, 3, 7, 7, 6)]),
}  # fmt: skip


def gradient_of(name: str) -> Found:
    """The graph of a case with the gradient as the only match."""
    found = find(FAMILY, GRADIENTS[name].function, GRADIENTS[name].inputs())
    assert [match.plan.kind for match in found.matches] == ["maximum", "sum"] and not found.rejections
    return Found(found.graph, found.matches[1:], found.examples)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_maxima_gather(name: str, folder: Path) -> None:
    found = gradient_of(name)
    region = region_of(found.match)
    assert {spec.dtype for spec in region.inputs} >= {"int64" if name == "volume" else "int8"}
    call = build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    assert_same(run_cpp(call, inputs, expected), expected)
    workload = Workload((), (None,) * len(region.inputs))
    judge = Judge(region, workload, 0, torch.device("cpu"))
    for distribution in distributions_for(region, workload):
        made = generate(region, workload, distribution, 0, torch.device("cpu"))
        outputs = [empty_like(value) for value in expected]
        call(*made, *outputs)
        assert isinstance(judge.judge(distribution, outputs), Agreed), distribution


def test_places_of_maxima_that_are_asked_for_otherwise_stay_a_scatter() -> None:
    def kept(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        _, where = max_pool2d(x, 3, 2, 1, return_indices=True)
        return where, ATEN.max_pool2d_with_indices_backward(gradient, x, [3, 3], [2, 2], [1, 1], [1, 1], False, where)

    found = find(FAMILY, kept, [tied(2, 5, 32, 30), finite(2, 5, 16, 15)])
    assert [match.plan.kind for match in found.matches] == ["maximum"]
    assert [rejection.code for rejection in found.rejections] == ["structure"]


def test_an_operator_s_indices_are_not_made_from_numbers_of_taps(folder: Path) -> None:
    """As Inductor has it that keeps the operator: places come from the forward graph as numbers of taps."""

    def backward(where: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        window = ([3, 3], [2, 2], [1, 1], [1, 1])
        places = torch.ops.prims._low_memory_max_pool_offsets_to_indices(where, [3, 3], [32, 30], *window[1:])
        return ATEN.max_pool2d_with_indices_backward(gradient, x, *window, False, places)

    x, gradient = tied(2, 5, 32, 30), finite(2, 5, 16, 15)
    where = torch.ops.prims._low_memory_max_pool_with_offsets(x, [3, 3], [2, 2], [1, 1], [1, 1], False)[1]
    graph = make_fx(backward, tracing_mode="fake")(where, x, gradient).graph
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    found = Found(graph, list(FAMILY.find(graph, "cpu")), dict(zip(names, (where, x, gradient), strict=True)))
    assert "int64" not in {spec.dtype for spec in region_of(found.match).inputs}
    call = build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    assert_same(run_cpp(call, inputs, expected), expected)


def interpret_gradients() -> None:
    for number, name in enumerate(GRADIENTS):
        found = gradient_of(name)
        space = FAMILY.space(found.match, CUDA)
        assert_triton_agrees(
            FAMILY,
            found,
            [{**space.default, "units": 32, "num_warps": 1, "rows": space.choices["rows"][-(number % 2)]}],
        )


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found, turn = found_of(name), list(CASES).index(name)
    schedules = schedules_of(FAMILY, found.match, CPU)
    call = build(FAMILY, found.match, schedules[turn % len(schedules)], folder)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    outputs = run_cpp(call, inputs, expected)
    if "bfloat16" not in name:
        assert_same(outputs, expected)
        return
    # On some processors eager rounds on the way: no more than it is off its own values in float64.
    reference = evaluate_fp64(region_of(found.match), inputs)
    for output, exact, eager in zip(outputs, reference.exact, reference.eager, strict=True):
        assert bool(((output.double() - exact).abs() <= allowed_error(exact, eager)).all())


@pytest.mark.parametrize(
    "name", ["causal", "causal by slicing", "plane float16", "channels last", "maximum and where", "gradient of averages",
             "gradients of a plane", "gradients, channels last"],
)  # fmt: skip
def test_the_judge_agrees_on_every_distribution(name: str, folder: Path) -> None:
    match = found_of(name).match
    region, workload = region_of(match), Workload((), (None,) * len(match.inputs))
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, folder)
    judge = Judge(region, workload, 0, torch.device("cpu"))
    for distribution in distributions_for(region, workload):
        if distribution == "special" and "gradients" in name and "avx512f" not in CpuPlatform().target().features:
            # There eager multiplies padding with what is not finite, where kernels read none.
            continue
        inputs = generate(region, workload, distribution, 0, torch.device("cpu"))
        specs = [torch.empty_strided(s.shape, s.stride, dtype=getattr(torch, s.dtype)) for s in region.output_specs]
        outputs = [empty_like(value) for value in specs]
        call(*inputs, *outputs)
        assert isinstance(judge.judge(distribution, outputs), Agreed), distribution


@pytest.mark.parametrize("name", ["plane with residual", "channels last"])
def test_every_schedule_agrees(name: str, folder: Path) -> None:
    found = found_of(name)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    for schedule in schedules_of(FAMILY, found.match, CPU):
        if schedule["order"] == "static":
            assert_same(run_cpp(build(FAMILY, found.match, schedule, folder), inputs, expected), expected)


def unbounded_weight() -> Tensor:
    weight = finite(5, 1, 3, 3)
    weight[0, 0, 0, 0], weight[1, 0, 2, 1], weight[2, 0, 1, 1] = math.inf, math.nan, -math.inf
    return weight


PADDED: dict[str, Case] = {
    "seven by seven": Case(lambda x, w, b: conv2d(x, w, b, padding=3, groups=x.shape[1]) + x,
                           lambda: [finite(2, 5, 27, 28), finite(5, 1, 7, 7), finite(5)]),
    "strided and dilated": Case(lambda x, w: depthwise(x, w, stride=2, padding=(2, 1), dilation=2),
                                lambda: [finite(2, 5, 23, 37), finite(5, 1, 3, 3)]),
    "strided down the rows": Case(lambda x, w: depthwise(x, w, stride=(2, 1), padding=(2, 1)),
                                  lambda: [finite(2, 5, 31, 37), finite(5, 1, 5, 3)]),
    "dilated, in double precision": Case(lambda x, w: depthwise(x, w, padding=4, dilation=2), lambda: [
        finite(2, 3, 21, 22, dtype=torch.float64), finite(3, 1, 5, 5, dtype=torch.float64)]),
    "taller than registers": Case(lambda x, w: depthwise(x, w, padding=(6, 0)), lambda: [
        finite(2, 3, 19, 33), finite(3, 1, 13, 1)]),
    "bfloat16": Case(lambda x, w: depthwise(x, w, padding=1), lambda: [
        finite(3, 5, 18, 20, dtype=torch.bfloat16), finite(5, 1, 3, 3, dtype=torch.bfloat16)]),
    "float16, whose padding is multiplied without oneDNN": Case(lambda x, w: depthwise(x, w, padding=1), lambda: [
        finite(3, 5, 18, 20, dtype=torch.float16), unbounded_weight().half()]),
    "double, whose padding is multiplied": Case(lambda x, w: depthwise(x, w, padding=1), lambda: [
        finite(3, 5, 18, 20, dtype=torch.float64), unbounded_weight().double()]),
    "weights that are no numbers": Case(lambda x, w: depthwise(x, w, padding=1), lambda: [
        finite(3, 5, 18, 20), unbounded_weight()]),
    "maximum": Case(lambda x: max_pool2d(relu(x), 3, 2, 1), lambda: [tied(2, 3, 33, 35)]),
    "average": Case(lambda x: avg_pool2d(x, 3, 1, 1), lambda: [finite(2, 3, 30, 31)]),
    "windows side by side": Case(lambda x: avg_pool2d(x, 2), lambda: [finite(2, 3, 62, 64)]),
    "padded beforehand": Case(padded_maximum, lambda: [tied(2, 3, 33, 35)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PADDED)
def test_planes_are_copied_with_their_padding(name: str, folder: Path) -> None:
    found = find(FAMILY, PADDED[name].function, PADDED[name].inputs())
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    space = FAMILY.space(found.match, CPU)
    assert space.choices["padded"] == (True, False)
    for rows in space.choices["rows"]:
        schedule = {**space.default, "rows": rows}
        assert "kv_block" in kernel_of(FAMILY, found.match, schedule).source
        assert_same(run_cpp(build(FAMILY, found.match, schedule, folder), inputs, expected), expected)


@pytest.mark.parametrize(
    "function, inputs",
    [
        (lambda x: avg_pool2d(x, 3, 2, 1, count_include_pad=False), [finite(2, 3, 32, 32)]),
        (lambda x: max_pool2d(x, 3, 2, 1, return_indices=True), [finite(2, 3, 32, 32)]),
        (lambda x: max_pool3d(x, 2), [finite(2, 3, 12, 12, 12)]),
        (lambda x: avg_pool2d(x, 3, 1, 1), [finite(1, 1, 3, 20000)]),
    ],
)
def test_what_a_copy_does_not_hold_is_not_copied(function: Callable[..., Any], inputs: list[Tensor]) -> None:
    assert "padded" not in FAMILY.space(find(FAMILY, function, inputs).match, CPU).choices


def test_a_dynamic_batch_takes_any_size(folder: Path) -> None:
    match = find(FAMILY, lambda x: avg_pool2d(x, 3, 2, 1) * 2, [finite(9, 6, 20, 24)], dynamic=True).match
    assert region_of(match).symbol_names == ("s0",)
    for size in (1, 2, 13):
        schedule = FAMILY.space(match, CPU).default
        assert_matches_eager(FAMILY, match, [finite(size, 6, 20, 24)], [size], folder, schedule)


def test_a_dynamic_length_takes_any_size(folder: Path) -> None:
    match = find(FAMILY, lambda x: avg_pool1d(x.t(), 3, 1, 1), [finite(300, 6)], dynamic=True).match
    for size in (2, 5, 131):
        schedule = FAMILY.space(match, CPU).default
        assert_matches_eager(FAMILY, match, [finite(size, 6)], [size], folder, schedule)


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("causal", "channels last", "maximum and where", "gradient of averages"):
        match = found_of(name).match
        for target, language in ((CPU, "cpp"), (CUDA, "triton")):
            schedules = schedules_of(FAMILY, match, target)
            if target is CUDA:
                schedules = [one for one in schedules if 32 * one["num_warps"] <= one["units"]]
            kernels = [kernel_of(FAMILY, match, schedule, language) for schedule in schedules]
            assert kernels[0] == kernel_of(FAMILY, match, schedules[0], language)
            assert len({kernel.digest for kernel in kernels}) == len(schedules), (name, language)


# --- Triton ----------------------------------------------------------------------------------------------------------

# Small, since the interpreter takes its time; several programs, vectors where sizes allow them and where they do not.
TRITON_CASES: dict[str, tuple[Case, dict[str, int]]] = {
    "causal": (Case(causal, lambda: [finite(9, 4, 40, dtype=torch.bfloat16), finite(4, 1, 4, dtype=torch.bfloat16),
                                     finite(4, dtype=torch.bfloat16)]), {"lanes": 8}),
    "causal by slicing": (Case(causal_by_slicing, lambda: [finite(9, 4, 36), finite(4, 1, 4), finite(4)]), {"lanes": 4}),
    "causal of sequences": (Case(causal_of_sequences, lambda: [finite(3, 44, 8), finite(8, 1, 4)]), {}),
    "across sequences": (Case(lambda x, w: relu(conv1d(x.transpose(1, 2), w, padding=1, groups=x.shape[2])),
                              lambda: [finite(5, 40, 6), finite(6, 1, 3)]), {"lanes": 4}),
    "plane with residual": (Case(with_residual, lambda: [finite(2, 3, 16, 16), finite(3, 1, 3, 3), finite(3)]),
                            {"lanes": 4, "rows": 4}),
    "plane as wide as a vector": (Case(with_residual, lambda: [finite(3, 3, 16, 8), finite(3, 1, 3, 3), finite(3)]),
                                  {"lanes": 8, "rows": 2}),
    "odd plane": (depthwise_case(3, 19, padding=1), {}),
    "weights that are no numbers": (Case(lambda x, w: depthwise(x, w, padding=1), lambda: [
        finite(2, 5, 12, 16), unbounded_weight()]), {"lanes": 4, "rows": 4}),
    "channels last": (Case(lambda x, w: depthwise(x, w, padding=1, stride=2),
                           lambda: [channels_last(finite(2, 16, 12, 16)), finite(16, 1, 3, 3)]), {"rows": 2}),
    "walk, channels last": (Case(inverted_residual, lambda: [
        channels_last(finite(2, 24, 26, 24).half()), finite(24, 1, 3, 3).half(), finite(24).half(), finite(24).half()]),
        {"rows": 2, "steps": 5}),
    "walk, weights that are no numbers": (Case(lambda x, w: depthwise(x, w, padding=1), lambda: [
        channels_last(finite(2, 5, 12, 16)), unbounded_weight()]), {"rows": 4, "steps": 4}),
    "walk of a dynamic batch": (Case(lambda x, w: depthwise(x, w[1], padding=1), lambda: [
        channels_last(finite(3, 6, 10, 16)), finite(2, 6, 1, 3, 3)]), {"lanes": 2, "steps": 4}),
    "walk of volumes": (Case(lambda x, w: conv3d(x, w, padding=1, groups=x.shape[1]), lambda: [
        channels_last(finite(2, 4, 7, 4, 6)), finite(4, 1, 3, 3, 3)]), {"rows": 1, "steps": 3}),
    "walk of sequences": (Case(
        lambda x, w: relu(conv1d(x.transpose(1, 2), w, padding=3, groups=x.shape[2])).transpose(1, 2).contiguous(),
        lambda: [finite(3, 41, 32), finite(32, 1, 4)]), {"lanes": 2, "rows": 2, "steps": 4}),
    "average of what is there": (Case(lambda x: avg_pool2d(x, 3, 2, 1, True, False), lambda: [finite(2, 3, 32, 32)]), {}),
    "a dynamic batch": (Case(lambda x: avg_pool2d(x, 3, 2, 1) * 2, lambda: [finite(9, 3, 12, 16)]), {}),
    "maximum of a volume": (Case(lambda x: max_pool3d(x, 2), lambda: [tied(2, 3, 12, 12, 12)]), {}),
    "rows that begin earlier in a walk": (Case(lambda x, w: relu(depthwise(x, w, padding=1)), lambda: [
        channels_last(finite(2, 5, 12, 17)), finite(5, 1, 3, 3)]), {"rows": 2, "steps": 4}),
    "rows that do not come out even": (Case(lambda x: max_pool2d(x, 4, 1, 1), lambda: [tied(2, 3, 23, 24)]), {"rows": 4}),
    "maximum and where": (Case(lambda x: max_pool2d(x, 3, 2, 1, return_indices=True), lambda: [tied(2, 3, 32, 32)]),
                          {"lanes": 4, "rows": 2}),
    "gradient of averages": (Case(average_gradient(2, [3, 3], [2, 2], [1, 1], False, True, None),
                                  lambda: [finite(2, 3, 8, 12), finite(2, 3, 16, 24)]), {"lanes": 8}),
    "gradients of a strided plane": (Case(convolution_gradient(2, 1), lambda: [
        finite(2, 3, 10, 12), finite(2, 3, 20, 24), finite(3, 1, 3, 3)]), {"tile": 64, "programs": 8}),
    "gradients, channels last": (Case(convolution_gradient(1, 1), lambda: [
        channels_last(finite(2, 24, 6, 6)), channels_last(finite(2, 24, 6, 6)), finite(24, 1, 3, 3)]), {"tile": 256}),
}  # fmt: skip


def interpret() -> None:
    for name, (case, changes) in TRITON_CASES.items():
        found = find(FAMILY, case.function, case.inputs(), dynamic="dynamic" in name)
        schedule = {**FAMILY.space(found.match, CUDA).default, **changes, "units": 32, "num_warps": 1}
        walks = "for step in range(" in kernel_of(FAMILY, found.match, schedule, "triton").source
        assert walks or not name.startswith("walk"), name
        with stores_counted() as times:
            assert_triton_agrees(FAMILY, found, [schedule])
        # Who came last would decide how it is rounded.
        assert name.startswith("gradient") or max(times.values()) == 1, name
    interpret_gradients()


@contextmanager
def stores_counted() -> Iterator[Counter[int]]:
    """How often each address is stored to under the interpreter."""
    from triton.runtime.interpreter import _interpreter, interpreter_builder

    times: Counter[int] = Counter()

    class Counting:
        def store(self, addresses: Any, values: Any, mask: Any) -> None:
            times.update(addresses[mask.astype(bool)].ravel().tolist())
            _interpreter.store(addresses, values, mask)

        def __getattr__(self, name: str) -> Any:
            return getattr(_interpreter, name)

    module = sys.modules[type(interpreter_builder).__module__]
    module._interpreter = Counting()  # type: ignore[attr-defined]
    try:
        yield times
    finally:
        module._interpreter = _interpreter  # type: ignore[attr-defined]


def judge_walks() -> None:
    """In half precision, where eager's own roundings on the way are left out."""
    case, changes = TRITON_CASES["walk, channels last"]
    found = find(FAMILY, case.function, case.inputs())
    region, workload = region_of(found.match), Workload((), (None,) * len(found.match.inputs))
    judge = Judge(region, workload, 0, torch.device("cpu"))
    schedule = {**FAMILY.space(found.match, CUDA).default, **changes, "units": 32, "num_warps": 1}
    kernel = kernel_of(FAMILY, found.match, schedule, "triton")
    # Once for each result of a unit, as it is stored.
    assert kernel.source.count(".to(tl.float16)") == schedule["lanes"] * schedule["rows"]
    for distribution in distributions_for(region, workload):
        inputs = generate(region, workload, distribution, 0, torch.device("cpu"))
        outputs = [empty_like(value) for value in values_of(found, found.match.outputs)]
        launch(kernel, inputs, outputs, {})
        assert isinstance(judge.judge(distribution, outputs), Agreed), distribution


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_stencils", "interpret")


def test_walks_agree_with_fp64_under_the_interpreter() -> None:
    interpreted("test_stencils", "judge_walks")


def test_every_thread_has_a_unit() -> None:
    case, _ = TRITON_CASES["maximum of a volume"]
    match = find(FAMILY, case.function, case.inputs()).match
    schedule = {**FAMILY.space(match, CUDA).default, "units": 128}
    assert FAMILY.emit(match, {**schedule, "num_warps": 4}, "triton").launches
    with pytest.raises(EmissionError, match="128 units leave threads of 8 warps without one"):
        FAMILY.emit(match, {**schedule, "num_warps": 8}, "triton")


def test_a_walk_reads_weights_once(folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    image, weight = channels_last(finite(4, 128, 28, 28).half()), finite(128, 1, 3, 3).half()
    inputs = [image, weight, finite(128).half(), finite(128).half()]
    match = find(FAMILY, inverted_residual, inputs).match
    space = FAMILY.space(match, CUDA)
    kernel = kernel_of(FAMILY, match, {**space.default, "steps": space.choices["steps"][1]}, "triton")
    ahead, walked = kernel.source.split("for step in range(")
    for number, node in enumerate(match.inputs):
        is_image = node.meta["val"].shape[-1] == 28
        assert (f"tl.load(in{number} " in walked) == is_image and (f"tl.load(in{number} " in ahead) != is_image
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and resources.shared_bytes == 0


@pytest.mark.parametrize("name", ["causal", "plane with residual", "maximum and where"])
def test_triton_shifts_windows_in_registers(name: str, folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    case, changes = TRITON_CASES[name]
    match = find(FAMILY, case.function, case.inputs()).match
    kernel = kernel_of(FAMILY, match, {**FAMILY.space(match, CUDA).default, **changes}, "triton")
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.registers or 0) <= 128
    assert resources.shared_bytes == 0
