from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import embedding_bag

from kevolve_inductor.graph.indexed import indexed_ranges
from kevolve_inductor.graph.region import InputRange

TABLE, INDICES = torch.randn(50, 30, 4), torch.randint(20, (6, 3))


def ranges_of(function: Callable[..., Any], *inputs: Tensor) -> dict[int, InputRange]:
    """Of the inputs, by position."""
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    found = indexed_ranges(graph.nodes)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    return {position: found[node] for position, node in enumerate(placeholders) if node in found}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x[i],
        lambda x, i: x[i.t().reshape(-1).int()],
        lambda x, i: x[torch.where(i < 0, i + 50, i)],
        lambda x, i: x.index_select(0, i[0]),
        lambda x, i: torch.nn.functional.embedding(i, x[:, 0]),
        lambda x, i: x.gather(0, i.unsqueeze(-1)),
        lambda x, i: x.index_put((i,), x[0, 0], accumulate=True),
    ],
)
def test_an_index_is_within_the_axis_it_indexes(function: Callable[..., Any]) -> None:
    assert ranges_of(function, TABLE, INDICES) == {1: InputRange(0, 49)}


def test_each_index_has_its_own_axis_and_the_narrowest_of_several() -> None:
    assert ranges_of(lambda x, i, j: x[:, i, j], TABLE, INDICES, INDICES.clone()) == {
        1: InputRange(0, 29),
        2: InputRange(0, 3),
    }
    assert ranges_of(lambda x, i: (x[i], x[0][i]), TABLE, INDICES) == {1: InputRange(0, 29)}


def test_masks_and_what_is_not_an_index_have_none() -> None:
    assert ranges_of(lambda x, i: x.masked_fill(i[:, :1, None] > 3, 0.0), TABLE[:6], INDICES) == {}
    assert ranges_of(lambda x, i: x[i + 7], TABLE, INDICES) == {}


def test_what_a_bag_keeps_for_its_gradient() -> None:
    def gradient(g: Tensor, indices: Tensor, offsets: Tensor, bags: Tensor, sizes: Tensor, most: Tensor) -> Tensor:
        return torch.ops.aten._embedding_bag_backward(g, indices, offsets, bags, sizes, most, 50, False, 1, False, None)

    indices, offsets = torch.randint(50, (60,)), torch.arange(0, 60, 10)
    table = TABLE[:, 0].contiguous()
    _, bags, sizes, most = torch.ops.aten._embedding_bag(table, indices, offsets, False, 1)
    found = ranges_of(gradient, torch.randn(6, 4), indices, offsets, bags, sizes, most)
    assert found == {1: InputRange(0, 49), 3: InputRange(0, 5, monotone=True), 4: InputRange(10, 10)}
    assert bags.tolist() == sorted(bags.tolist()) and sizes.unique().tolist() == [10]


def test_offsets_rise_to_the_number_of_indices() -> None:
    def bag(x: Tensor, i: Tensor, offsets: Tensor) -> Tensor:
        return embedding_bag(i, x, offsets)

    found = ranges_of(bag, TABLE[:, 0].contiguous(), torch.arange(40), torch.arange(0, 40, 10))
    assert found == {1: InputRange(0, 49), 2: InputRange(0, 40, monotone=True)}
