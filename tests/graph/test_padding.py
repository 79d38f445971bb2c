"""Products that Inductor has padded are read as they were asked for."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import config
from torch._inductor.fx_passes import pad_mm
from torch.nn import functional

from benchmarks.cases import Instance
from benchmarks.regions import regions_of
from kevolve_inductor.graph.padding import without_padding
from kevolve_inductor.graph.view import GraphView
from kevolve_inductor.synthesis.families.chains import ChainsFamily
from tests.synthesis.family_checks import find


@pytest.fixture
def padded(monkeypatch):
    """Graphs as Inductor makes them on a GPU, of tensors in main memory."""
    monkeypatch.setattr(pad_mm, "check_device", lambda left, right: True)
    monkeypatch.setattr(pad_mm, "has_triton", lambda *args: True)
    with config.patch(force_shape_pad=True):
        yield


def graph_of(function, *inputs, dynamic=False):
    return find(ChainsFamily(), function, inputs, dynamic=dynamic).graph


def targets(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def results(graph, inputs):
    return torch.fx.GraphModule({}, graph)(*inputs)


PRODUCTS = {
    "product": (lambda a, b: a @ b, (33, 19), (19, 5)),
    "with a bias": (lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2.0), (5,), (33, 19), (19, 5)),
    "with a matrix": (lambda c, a, b: torch.addmm(c, a, b), (33, 5), (33, 19), (19, 5)),
    "with a column": (lambda c, a, b: torch.addmm(c, a, b), (33, 1), (33, 19), (19, 5)),
    "of a layer": (functional.linear, (33, 19), (5, 19), (5,)),
    "inside only": (lambda a, b: a @ b, (32, 19), (19, 8)),
    "rows only": (lambda a, b: a @ b, (33, 16), (16, 8)),
    "batched": (lambda a, b: torch.bmm(a, b), (3, 9, 7), (3, 7, 5)),
    "two in a row": (lambda a, b, c: torch.relu(a @ b) @ c, (33, 19), (19, 5), (5, 9)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_zeros_around_operands_are_seen_through(padded, name):
    function, *shapes = PRODUCTS[name]
    inputs = [torch.randn(shape).half() for shape in shapes]
    graph = graph_of(function, *inputs)
    view = GraphView.of(graph).rewritten(without_padding(graph))
    assert any("constant_pad_nd" in target for target in targets(graph))
    assert not any(target.startswith(("aten.constant_pad", "aten.slice", "aten.cat")) for target in targets(view.graph))
    for found, expected in zip(results(view.graph, inputs), results(graph, inputs), strict=True):
        torch.testing.assert_close(found, expected)
    names = {node.name for node in graph.nodes}
    assert {view.name(node) for node in view.graph.nodes} <= names


def pads(x, right, below, value=0.0):
    return torch.constant_pad_nd(x, [0, right, 0, below], value)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: pads(a, 5, 0, 1.0) @ pads(b, 0, 5),
        lambda a, b: pads(a, 5, 0) @ torch.cat([b, b[:5]]),
        lambda a, b: torch.constant_pad_nd(a, [5, 0, 0, 0]) @ torch.constant_pad_nd(b, [0, 0, 5, 0]),
        lambda a, b: (pads(a, 5, 7) @ pads(b, 0, 5))[7:],
        lambda a, b: (pads(a, 5, 7) @ pads(b, 0, 5))[::2],
        lambda a, b: pads(a, 5, 7) @ pads(b, 0, 5),
    ],
    ids=["ones", "something else", "zeros in front", "another part", "every other row", "all of it"],
)
def test_what_is_more_than_zeros_around_operands_stays(function):
    graph = graph_of(function, torch.randn(33, 19), torch.randn(19, 8))
    assert "aten.mm.default" in targets(graph) and not without_padding(graph)


def test_padding_of_a_size_that_varies_stays():
    def function(a, b):
        more = -a.shape[0] % 8
        return torch.constant_pad_nd(a.t(), [0, more]) @ torch.constant_pad_nd(b, [0, 0, 0, more])

    graph = graph_of(function, torch.randn(19, 33), torch.randn(19, 8), dynamic=True)
    assert "aten.constant_pad_nd.default" in targets(graph) and not without_padding(graph)


def test_a_result_that_is_also_used_whole_stays():
    def both(a, b):
        whole = pads(a, 5, 7) @ pads(b, 0, 5)
        return whole[:33], whole.sum()

    assert not without_padding(graph_of(both, torch.randn(33, 19), torch.randn(19, 8)))


def test_padded_layers_are_one_region_named_as_in_the_graph(padded):
    def layers(x, w1, b1, w2, b2):
        return functional.linear(functional.relu(functional.linear(x, w1, b1)), w2, b2)

    shapes = ((70_001, 19), (31, 19), (31,), (17, 31), (17,))
    (found,) = regions_of(Instance(layers, tuple(torch.randn(shape).half() for shape in shapes)), "cuda")
    assert found.family.name == "chains" and len(found.match.nodes) < 10
    assert found.inputs == tuple(f"arg{k}_1" for k in range(5)) and found.outputs[0].startswith("slice_tensor")
