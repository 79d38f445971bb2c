from __future__ import annotations

import pytest
import torch
import torch._inductor.compile_fx as compile_fx

from kevolve_inductor.evaluate.baselines import compile_inductor


def turned() -> torch.fx.GraphModule:
    """Columns become rows, of a length at which Inductor would rather store longer ones."""
    graph = torch.fx.Graph()
    twice = graph.call_function(torch.ops.aten.mul.Tensor, (graph.placeholder("x"), 2.0))
    rows = graph.call_function(torch.ops.aten.clone.default, (twice,), {"memory_format": torch.contiguous_format})
    graph.output((rows, twice))
    return torch.fx.GraphModule({}, graph)


def test_all_results_are_a_users_results_to_inductor(monkeypatch):
    seen = []

    def compiled(gm, fakes, **_):
        (output,) = gm.graph.find_nodes(op="output")
        seen.append(output.meta["user_visible_output_idxs"])
        return lambda tensors: tensors

    monkeypatch.setattr(compile_fx, "compile_fx_inner", compiled)
    compile_inductor(turned(), [torch.empty(2317, 511).t()])
    assert seen == [[0, 1]]


@pytest.mark.gpu
def test_inductors_results_lie_in_memory_as_a_user_has_them():
    x = torch.randn(30317, 511, device="cuda").t()
    rows, twice = compile_inductor(turned(), [x])([x])
    assert rows.stride() == (30317, 1) and twice.stride() == (1, 511)
