"""A graph with its found regions folded into single calls."""

from __future__ import annotations

import torch

from kevolve_inductor.graph.view import GraphView
from kevolve_inductor.synthesis.family import Match
from kevolve_inductor.testing.graphs import post_grad_graphs


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
