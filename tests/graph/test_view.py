"""A graph with its found regions folded into single calls."""

from __future__ import annotations

import torch
from torch.nn import functional

from kevolve_inductor.graph.discovery import discover
from kevolve_inductor.graph.view import GraphView
from kevolve_inductor.platforms.null import NullPlatform
from kevolve_inductor.synthesis.families import FAMILIES
from kevolve_inductor.synthesis.family import Match
from kevolve_inductor.testing.graphs import post_grad_graphs
from tests.synthesis.family_checks import CPU


def chain(x):
    a = torch.sin(x)
    b = torch.cos(a)
    return b + 1, torch.tanh(a)


def by_target(graph, name):
    return next(node for node in graph.nodes if str(node.target) == f"aten.{name}.default")


def test_folded_region_keeps_outputs_names_and_hides_its_inside():
    (graph,) = post_grad_graphs(chain, (torch.randn(4),))
    sin, cos = by_target(graph, "sin"), by_target(graph, "cos")
    match = Match("test", (sin, cos), tuple(sin.all_input_nodes), (sin, cos), "hot", None)
    view = GraphView.of(graph).contracted([match])
    targets = {str(node.target) for node in view.graph.nodes}
    assert "aten.sin.default" not in targets and "aten.cos.default" not in targets
    (read,) = by_target(view.graph, "tanh").all_input_nodes
    assert view.name(read) == sin.name and read.meta["val"].shape == (4,)
    assert by_target(graph, "sin") is sin, "the graph itself is left alone"


def test_folding_nothing_is_the_same_view():
    (graph,) = post_grad_graphs(chain, (torch.randn(4),))
    view = GraphView.of(graph)
    assert view.contracted([]) is view


def test_names_lead_back_through_two_foldings():
    (graph,) = post_grad_graphs(chain, (torch.randn(4),))
    sin = by_target(graph, "sin")
    once = GraphView.of(graph).contracted([Match("t", (sin,), tuple(sin.all_input_nodes), (sin,), "hot", None)])
    cos = by_target(once.graph, "cos")
    twice = once.contracted([Match("t", (cos,), tuple(cos.all_input_nodes), (cos,), "hot", None)])
    names = {twice.name(node) for node in twice.graph.nodes}
    assert {sin.name, by_target(graph, "cos").name} <= names


def test_what_was_found_first_can_still_be_tuned_when_all_have_looked():
    def model(x, offsets, ids, table):
        bags = functional.embedding_bag(ids, table, offsets, mode="sum")
        weights, experts = torch.topk(torch.softmax(x, -1), 2)
        pooled = functional.max_pool2d(x.view(1, 1, *x.shape), 3)
        return bags, x.cumsum(0), weights, experts, pooled, functional.layer_norm(x * 2, (x.shape[1],))

    ids, offsets = torch.randint(0, 900, (20_000,)), torch.arange(0, 20_000, 10)
    inputs = [torch.randn(3000, 64), offsets, ids, torch.randn(900, 32)]
    (graph,) = post_grad_graphs(model, tuple(inputs))
    found = discover(graph, FAMILIES, {}, NullPlatform().ceilings(), "cpu").found
    assert len({one.family.name for one in found}) >= 4
    for one in found:
        space = one.family.space(one.match, CPU)
        one.family.emit(one.match, space.default, "cpp")
