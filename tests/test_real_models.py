"""Models nobody here wrote, with random weights and small configurations: inference and a training step, as eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kevolve_inductor import report

pytestmark = pytest.mark.timeout(300)

OPTIONS = {"kevolve.search": "quick", "kevolve.budget_s": 2, "kevolve.trials": 1, "kevolve.strict": True}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With another test beside it, two would wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Subject:
    """A model, its inputs by keyword, and the tensor it returns."""

    model: nn.Module
    inputs: dict[str, Tensor]
    output: Callable[[Any], Tensor]


def mixture_of_experts() -> Subject:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2MoeConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=1,
        shared_expert_intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, num_experts=8,
        num_experts_per_tok=2, max_position_embeddings=64, attn_implementation="eager", use_cache=False,
        decoder_sparse_step=1, norm_topk_prob=True,
    )  # fmt: skip
    model = transformers.Qwen2MoeForCausalLM(config)
    return Subject(model, {"input_ids": torch.randint(0, 128, (4, 24))}, lambda output: output.logits)


def encoder() -> Subject:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(0, 128, (4, 24)), "attention_mask": torch.ones(4, 24, dtype=torch.int64)}
    inputs["attention_mask"][1:, 18:] = 0
    model = transformers.BertModel(config, add_pooling_layer=False)
    return Subject(model, inputs, lambda output: output.last_hidden_state)


def message_passing() -> Subject:
    geometric = pytest.importorskip("torch_geometric.nn")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = geometric.SAGEConv(16, 32, aggr="mean")
            self.second = geometric.GATConv(32, 8, heads=2)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            hidden: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
            return hidden

    return Subject(
        Network(), {"x": torch.randn(200, 16), "edge_index": torch.randint(0, 200, (2, 900))}, lambda output: output
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "mixture-of-experts": mixture_of_experts,
    "encoder": encoder,
    "message-passing": message_passing,
}

# What must be seen in a model, whether or not a faster kernel is then found for it.
FOUND = {"mixture-of-experts": {"rows"}}


def compiled(model: nn.Module) -> Callable[..., Any]:
    result: Callable[..., Any] = torch.compile(model, backend="kevolve", options=OPTIONS)
    return result


def outputs_and_gradients(subject: Subject, run: Callable[..., Any]) -> tuple[Tensor, dict[str, Tensor]]:
    subject.model.zero_grad(set_to_none=True)
    output = subject.output(run(**subject.inputs))
    output.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in subject.model.named_parameters() if p.grad is not None}
    return output.detach(), gradients


def _named(parameter: str, message: str) -> str:
    return f"gradient of {parameter}: {message}"


@pytest.mark.parametrize("name", ["mixture-of-experts"])
def test_inference_equals_eager(name: str) -> None:
    subject = SUBJECTS[name]()
    subject.model.eval()
    report.reset()
    with torch.no_grad():
        expected = subject.output(subject.model(**subject.inputs))
        actual = subject.output(compiled(subject.model)(**subject.inputs))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    found = {row.family for row in report.last_run().regions}
    assert found >= FOUND.get(name, set())
    assert not any("unknown operator" in (row.verdict or "") for row in report.last_run().graph_verdicts)


@pytest.mark.parametrize("name", ["encoder", "message-passing"])
def test_a_training_step_equals_eager(name: str) -> None:
    subject = SUBJECTS[name]()
    # Without dropout, so that both runs see the same numbers.
    subject.model.eval()
    expected, wanted = outputs_and_gradients(subject, subject.model)
    actual, got = outputs_and_gradients(subject, compiled(subject.model))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert got.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(got[parameter], gradient, rtol=1e-3, atol=1e-5, msg=partial(_named, parameter))
