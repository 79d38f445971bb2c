"""FX graphs as regions: equal pieces are equal values, and the value still means what the graph meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx
from torch.fx.experimental.proxy_tensor import make_fx

from kevolve_inductor.exc import UnsupportedError
from kevolve_inductor.graph.capture import canonical_kernel, canonical_symbols, capture, capture_graph, graph_inputs
from kevolve_inductor.graph.reference import to_graph_module
from kevolve_inductor.graph.region import Region
from kevolve_inductor.kernel import Argument, Kernel, Launch, Workspace
from kevolve_inductor.testing.graphs import post_grad_graphs


def gate(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.topk(torch.softmax(x, -1), 2)
    return values / values.sum(-1, keepdim=True), indices


def interaction(dense: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    both = torch.cat([dense[:, None], rows], 1)
    products = torch.bmm(both, both.transpose(1, 2))
    left, right = torch.tril_indices(both.shape[1], both.shape[1], -1)
    return torch.cat([dense, products[:, left, right]], 1)


def odd_arguments(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    filled = x.masked_fill(x > 1, float("-inf")).to(torch.bfloat16)
    made = torch.full((3, 2), float("nan"), dtype=torch.float16)
    return filled, made, x.to(memory_format=torch.channels_last), torch.zeros_like(x, dtype=torch.int32)


def sizes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x[:, None] * y[None]).reshape(x.shape[0] * y.shape[0], -1) + x.shape[0]


def random_like(value: torch.Tensor) -> torch.Tensor:
    if value.is_floating_point():
        return torch.randn(tuple(value.shape), dtype=value.dtype)
    return torch.randint(0, 2, tuple(value.shape)).to(value.dtype)


def run(graph: torch.fx.Graph, values: dict[torch.fx.Node, torch.Tensor]) -> list[torch.Tensor]:
    placeholders = [values[node] for node in graph.nodes if node.op == "placeholder"]
    result = torch.fx.Interpreter(torch.fx.GraphModule({}, graph)).run(*placeholders)
    return [tensor for tensor in result if isinstance(tensor, torch.Tensor)]


def check_round_trip(graph: torch.fx.Graph) -> Region:
    """JSON and back is the same value, and the module built from it computes what the graph computes."""
    region = capture_graph(graph).region
    again = Region.from_json(region.to_json())
    assert again == region and again.digest == region.digest
    values = {node: random_like(node.meta["val"]) for node in graph_inputs(graph)}
    expected = run(graph, {node: value.clone() for node, value in values.items()})
    with torch.no_grad():
        actual = to_graph_module(region)(*(value.clone() for value in values.values()))
    torch.testing.assert_close(list(actual), expected, equal_nan=True)
    return region


@pytest.mark.parametrize(
    ("function", "shapes"),
    [(gate, [(64, 32)]), (interaction, [(8, 16), (8, 5, 16)]), (odd_arguments, [(2, 3, 4, 5)])],
)
def test_whole_graph_round_trip(function: Callable[..., Any], shapes: list[tuple[int, ...]]) -> None:
    (graph,) = post_grad_graphs(function, [torch.randn(shape) for shape in shapes])
    check_round_trip(graph)


def test_training_graphs_round_trip() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    graphs = post_grad_graphs(model, [torch.randn(5, 8)], train=True)
    assert len(graphs) == 2
    for graph in graphs:
        check_round_trip(graph)


def test_transformer_round_trip() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertModel(config)
    tokens = torch.randint(0, 64, (2, 6))
    graphs = post_grad_graphs(lambda ids: model(input_ids=ids).last_hidden_state, [tokens], train=True)
    assert len(graphs) == 2
    for graph in graphs:
        check_round_trip(graph)


def test_symbols_are_renamed_and_read_from_inputs() -> None:
    (graph,) = post_grad_graphs(sizes, [torch.randn(5, 3), torch.randn(7, 3)], dynamic=True)
    captured = capture_graph(graph)
    region = captured.region
    assert region.symbols == (("s0", 0, 0), ("s1", 0, 1), ("s2", 1, 0))
    assert sorted(captured.symbol_names.values()) == ["s0", "s1", "s2"]
    assert captured.symbol_names == canonical_symbols(graph_inputs(graph))
    assert all("sym_size" not in node.target for node in region.nodes)
    module = to_graph_module(region)
    for rows in (2, 4):
        x, y = torch.randn(rows, 3), torch.randn(6, 3)
        torch.testing.assert_close(module(x, y)[0], sizes(x, y))


def test_equal_pieces_have_equal_digests_whatever_their_names() -> None:
    digests = []
    for first, second in ((5, 7), (9, 4)):
        (graph,) = post_grad_graphs(sizes, [torch.randn(first, 3), torch.randn(second, 3)], dynamic=True)
        for node in graph.nodes:
            node.name = f"renamed_{node.name}"
        digests.append(capture_graph(graph).region.digest)
    assert digests[0] == digests[1]
    (graph,) = post_grad_graphs(gate, [torch.randn(64, 32)])
    (other,) = post_grad_graphs(gate, [torch.randn(64, 33)])
    assert capture_graph(graph).region.digest != capture_graph(other).region.digest


def test_kernels_are_rewritten_to_the_regions_symbols() -> None:
    rewritten = []
    for first, second in ((5, 7), (9, 4)):
        (graph,) = post_grad_graphs(sizes, [torch.randn(first, 3), torch.randn(second, 3)], dynamic=True)
        inputs = graph_inputs(graph)
        own = sorted(canonical_symbols(inputs))
        names = {canonical: name for name, canonical in canonical_symbols(inputs).items()}
        rows, columns = names["s0"], names["s2"]
        arguments = (Argument("input", 0), Argument("size", own.index(rows)), Argument("size", own.index(columns)))
        kernel = Kernel(
            "triton", f"def kernel(in0, {rows}, {columns}, x{rows}): {columns}",
            (Launch("kernel", arguments, (f"cdiv({rows}, 16)", f"{columns}*2")),), (Workspace("int32", columns),),
        )  # fmt: skip
        rewritten.append(canonical_kernel(kernel, inputs))
        assert f"size_s0, size_s2, x{rows}" in rewritten[-1].source
    (launch,) = rewritten[0].launches
    assert [a.index for a in launch.arguments] == [0, 0, 2] and launch.grid == ("cdiv(s0, 16)", "s2*2")
    assert rewritten[0].workspaces == rewritten[1].workspaces == (Workspace("int32", "s2"),)
    assert launch == rewritten[1].launches[0]


def test_a_piece_of_a_graph_takes_inputs_and_outputs_in_the_given_order() -> None:
    (graph,) = post_grad_graphs(interaction, [torch.randn(8, 16), torch.randn(8, 5, 16)])
    cat, bmm, permute, unsqueeze = (next(n for n in graph.nodes if n.name == name) for name in
                                    ("cat", "bmm", "permute", "unsqueeze"))  # fmt: skip
    dense, rows = graph_inputs(graph)
    region = capture([unsqueeze, cat, permute, bmm], [rows, dense], [bmm, cat]).region
    assert region.outputs == ("n3", "n1")
    assert region.inputs[0].shape == (8, 5, 16) and region.inputs[1].shape == (8, 16)
    assert region.nodes[3].args == ({"node": "n1"}, {"node": "n2"})
    assert region.output_specs[0].shape == (8, 6, 6)


def test_encoding_of_arguments() -> None:
    (graph,) = post_grad_graphs(odd_arguments, [torch.randn(2, 3, 4, 5)])
    nodes = capture_graph(graph).region.nodes
    values = [value for node in nodes for value in [*node.args, *node.kwargs.values()]]
    assert {"float": "-inf"} in values and {"float": "nan"} in values
    assert {"dtype": "bfloat16"} in values and {"device": "cpu"} in values
    assert any(node.kwargs.get("memory_format") == {"memory_format": "channels_last"} for node in nodes)


def test_tuple_results_have_several_specs() -> None:
    (graph,) = post_grad_graphs(gate, [torch.randn(64, 32)])
    nodes = capture_graph(graph).region.nodes
    topk = next(node for node in nodes if node.target == "aten.topk.default")
    assert [spec.dtype for spec in topk.specs] == ["float32", "int64"]
    items = [node for node in nodes if node.target == "getitem"]
    assert [node.args[1] for node in items] == [0, 1] and items[1].specs == topk.specs[1:]


def test_unused_inputs_stay_and_absent_outputs_go() -> None:
    def function(x: torch.Tensor, unused: torch.Tensor) -> tuple[Any, ...]:
        return x + 1, None, x

    (graph,) = [make_fx(function, tracing_mode="fake")(torch.randn(3), torch.randn(4)).graph]
    region = capture_graph(graph).region
    assert [spec.shape for spec in region.inputs] == [(3,), (4,)]
    assert region.outputs == ("n0", "i0")


def test_refusals() -> None:
    (graph,) = post_grad_graphs(sizes, [torch.randn(5, 3), torch.randn(7, 3)], dynamic=True)
    final = next(iter(graph.find_nodes(op="output"))).args[0][0]
    inside = [node for node in graph.nodes if node.op == "call_function"]
    x, y = graph_inputs(graph)
    with pytest.raises(UnsupportedError) as caught:
        capture(inside, [x], [final])
    assert caught.value.code == "structure"
    summed = next(node for node in inside if node.target is torch.ops.aten.mul.Tensor)
    narrow = [node for node in inside if node.target is torch.ops.aten.unsqueeze.default]
    with pytest.raises(UnsupportedError) as caught:
        capture([final], [summed], [final])
    assert caught.value.code in ("dynamic", "structure")
    assert capture(narrow + [summed], [x, y], [summed]).region.symbol_names == ("s0", "s1", "s2")


def test_a_symbol_that_no_input_shows_is_refused() -> None:
    (graph,) = post_grad_graphs(lambda x: (x.reshape(-1) + 1).relu(), [torch.randn(5, 3)], dynamic=True)
    relu = next(node for node in graph.nodes if node.target is torch.ops.aten.relu.default)
    with pytest.raises(UnsupportedError) as caught:
        capture([relu], [relu.args[0]], [relu])
    assert caught.value.code == "dynamic"


def test_a_region_may_not_write_to_its_arguments() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3)
    written = graph.call_function(torch.ops.aten.add_.Tensor, (x, 1))
    written.meta["val"] = torch.empty(3)
    graph.output((written,))
    with pytest.raises(UnsupportedError) as caught:
        capture([written], [x], [written])
    assert caught.value.code == "mutation"
    assert capture_graph(graph).region.nodes[0].target == "aten.add_.Tensor"


def test_higher_order_operators_are_refused() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3)
    called = graph.call_function(torch.ops.higher_order.cond, (True, None, None, [x]))
    called.meta["val"] = torch.empty(3)
    graph.output((called,))
    with pytest.raises(UnsupportedError) as caught:
        capture_graph(graph)
    assert caught.value.code == "structure"
