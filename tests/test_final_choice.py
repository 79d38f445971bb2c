"""Compiled, plain Inductor or eager: who is asked, what is remembered, and that the user's tensors stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch._inductor.compile_fx import compile_fx
from torch.nn import functional

from kevolve_inductor import backend, final_choice, report
from kevolve_inductor.cache.store import Store
from kevolve_inductor.evaluate.timing import Timing
from kevolve_inductor.final_choice import FinalChoice
from kevolve_inductor.graph.dynamo import described_inputs, graph_key
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.cpu_executor import CpuExecutor
from kevolve_inductor.settings import Settings
from kevolve_inductor.swap_pass import SwapPass


def timing(speedup, low=None, high=None):
    low, high = speedup if low is None else low, speedup if high is None else high
    return Timing(1000.0, {"compiled": 1000.0 * speedup}, speedup, low, high, 20)


def graph_of(function, *inputs):
    """The graph that Dynamo gives a backend, and its inputs."""
    seen = []

    def spy(gm, example_inputs):
        seen.append((gm, list(example_inputs)))
        return gm

    torch._dynamo.reset()
    torch.compile(function, backend=spy, dynamic=False)(*inputs)
    ((gm, examples),) = seen
    return gm, examples


def key_of(function, *inputs):
    gm, examples = graph_of(function, *inputs)
    return graph_key(gm.graph, gm, examples)


def choice_of(gm, examples, store, compare, **settings):
    return FinalChoice(
        gm, graph_key(gm.graph, gm, examples), Settings(store=store, **settings), CpuPlatform(), Store.open(store), compare
    )  # fmt: skip


def nothing_else(inputs):
    """There is nothing of ours in what was compiled."""


def normalised(x, weight):
    return functional.layer_norm(x, (8,), weight).relu()


def test_the_key_is_the_graphs_and_not_its_names():
    def another(values, scale):
        inner = functional.layer_norm(values, (8,), scale)
        return inner.relu()

    x, weight = torch.randn(4, 8), torch.randn(8)
    assert key_of(normalised, x, weight) == key_of(another, x, weight)


@pytest.mark.parametrize(
    "other",
    [
        lambda x, w: functional.layer_norm(x, (8,), w, eps=1e-3).relu(),
        lambda x, w: functional.layer_norm(x, (8,), w).tanh(),
        lambda x, w: functional.layer_norm(x, (8,), w),
        lambda x, w: functional.layer_norm(x + w, (8,), w).relu(),
    ],
)
def test_another_computation_has_another_key(other):
    x, weight = torch.randn(4, 8), torch.randn(8)
    assert key_of(other, x, weight) != key_of(normalised, x, weight)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.double(), lambda x: x[:2], lambda x: x.t().contiguous().t(), lambda x: x.clone().requires_grad_()],
)
def test_other_inputs_have_another_key(change):
    x, weight = torch.randn(4, 8), torch.randn(8)
    other = change(x)
    assert key_of(normalised, x, weight) != key_of(normalised, other, weight.to(other.dtype))


def test_modes_of_eager_are_in_the_key():
    x, weight = torch.randn(4, 8), torch.randn(8)
    gm, examples = graph_of(normalised, x, weight)
    plain = graph_key(gm.graph, gm, examples)
    with torch.no_grad():
        assert graph_key(gm.graph, gm, examples) != plain
    with torch.autocast("cpu", torch.bfloat16):
        assert graph_key(gm.graph, gm, examples) != plain


@pytest.mark.parametrize("function", [lambda x: torch.einsum("ij->j", x), lambda x: functional.dropout(x, 0.5) @ x.T])
def test_functions_of_torch_are_known_again(function):
    assert key_of(function, torch.randn(4, 8)) is not None


def test_a_graph_that_may_do_more_than_compute_is_not_run_again():
    @torch.library.custom_op("kevolve_tests::counted", mutates_args=())
    def counted(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    counted.register_fake(torch.empty_like)
    assert key_of(lambda x: torch.ops.kevolve_tests.counted(x) + 1, torch.randn(4)) is None


def test_only_plain_tensors_of_fixed_sizes_are_compared():
    assert described_inputs([torch.randn(3), 4]) is None
    assert described_inputs([torch.randn(3).to_sparse()]) is None
    assert described_inputs([torch.nn.Parameter(torch.randn(3))]) is not None


def test_the_faster_side_is_taken_and_remembered(tmp_path):
    gm, examples = graph_of(normalised, torch.randn(4, 8), torch.randn(8))
    choice = choice_of(gm, examples, tmp_path, lambda one, other: timing(1.5))
    compiled = lambda *inputs: (torch.zeros(1),)  # noqa: E731
    assert choice.settled() is None
    report.reset()
    torch.testing.assert_close(choice.between(compiled, nothing_else)(*examples)[0], normalised(*examples))
    assert report.last_run().graph_verdicts[0].verdict.startswith("runs eagerly, 1.50×")
    again = choice_of(gm, examples, tmp_path, None, search="lookup")
    assert again.settled() == "eager"
    torch.testing.assert_close(choice.untouched()(*examples)[0], normalised(*examples))
    with pytest.raises(ValueError, match="not kept"):
        again.untouched()


@pytest.mark.parametrize("outcome", [timing(0.7), timing(1.01), timing(1.3, 0.9, 1.8)])
def test_what_is_not_surely_slower_stays_compiled(tmp_path, outcome):
    gm, examples = graph_of(normalised, torch.randn(4, 8), torch.randn(8))
    choice = choice_of(gm, examples, tmp_path, lambda one, other: outcome)
    assert float(choice.between(lambda *inputs: (torch.full((), 7.0),), nothing_else)(*examples)[0]) == 7.0
    again = choice_of(gm, examples, tmp_path, None)
    assert again.settled() is None
    # A machine too noisy to decide is asked again.
    assert (again.known is None) == outcome.too_noisy_for(1.02)


def test_nothing_is_measured_where_nothing_may_be(tmp_path):
    def refuse(one, other):
        raise AssertionError("measured")

    gm, examples = graph_of(normalised, torch.randn(4, 8), torch.randn(8))
    compiled = lambda *inputs: (torch.zeros(1),)  # noqa: E731
    assert choice_of(gm, examples, tmp_path, refuse, search="lookup").between(compiled, nothing_else) is compiled
    choice_of(gm, examples, tmp_path, lambda one, other: timing(0.5)).between(compiled, nothing_else)(*examples)
    assert choice_of(gm, examples, tmp_path, refuse).between(compiled, nothing_else) is compiled


def test_a_thorough_search_measures_again_what_a_quick_one_measured(tmp_path):
    gm, examples = graph_of(normalised, torch.randn(4, 8), torch.randn(8))
    compiled = lambda *inputs: (torch.full((), 7.0),)  # noqa: E731
    choice_of(gm, examples, tmp_path, lambda one, other: timing(2.0)).between(compiled, nothing_else)(*examples)
    full = choice_of(gm, examples, tmp_path, lambda one, other: timing(0.5), search="full")
    assert full.settled() is None
    assert float(full.between(compiled, nothing_else)(*examples)[0]) == 7.0
    assert choice_of(gm, examples, tmp_path, None).settled() is None


def test_measuring_leaves_tensors_gradients_and_random_numbers_as_they_are(tmp_path):
    def update(x, buffer):
        buffer.add_(1.0)
        return functional.dropout(x * buffer, 0.5)

    x, buffer = torch.randn(64, requires_grad=True), torch.ones(64)
    gm, examples = graph_of(update, x, buffer)
    steps = []

    def compare(one, other):
        steps.extend([one, other])
        for _ in range(3):
            one(), other()
        return timing(0.5)

    buffer.fill_(1.0)
    torch.manual_seed(3)
    expected = update(x.detach(), buffer.clone())
    torch.manual_seed(3)
    result = choice_of(gm, examples, tmp_path, compare).between(gm, nothing_else)(*examples)
    torch.testing.assert_close(result[0].detach(), expected)
    assert steps and bool((buffer == 2.0).all()) and x.grad is None


@pytest.mark.parametrize(
    ("sets", "written", "is_compared"), [(1.9, False, False), (2.1, False, True), (2.9, True, False), (3.1, True, True)]
)
def test_sides_share_their_copies_of_inputs_that_none_of_them_writes(
    tmp_path, monkeypatch, sets, written, is_compared
):  # fmt: skip
    x = torch.randn(64)
    room = sets * x.untyped_storage().nbytes() / final_choice._MEMORY_SHARE
    monkeypatch.setattr(CpuExecutor, "free_bytes", lambda self: room)
    gm, examples = graph_of((lambda x: x.mul_(2.0).relu()) if written else (lambda x: (x * 2.0).relu()), x.clone())
    compared = []

    def compare(one, other):
        results = [step()[0] for step in (one, other, one)]
        compared.append(torch.equal(results[0], results[2]))
        return timing(0.5)

    choice_of(gm, examples, tmp_path, compare).between(gm, nothing_else)(x)
    # Who writes to inputs of its own gets another result of the second call.
    assert compared == ([not written] if is_compared else [])


def test_both_sides_are_timed_with_their_backward(tmp_path):
    seen = []

    def compare(one, other):
        seen.append((one(), other()))
        return timing(0.5)

    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    gm, examples = graph_of(normalised, x, weight)
    choice_of(gm, examples, tmp_path, compare).between(gm, nothing_else)(*examples)
    for side in seen[0]:
        assert [gradient.shape for gradient in side] == [x.shape, weight.shape]


def test_inputs_that_share_memory_or_lie_apart_are_copied_as_they_are(tmp_path):
    base = torch.arange(24.0)
    inputs = [base[2:].as_strided((3, 4), (4, 1)), base.view(4, 6)[:, ::2], base[:1].expand(5)]
    gm, examples = graph_of(lambda a, b, c: (a.add_(1.0), b + 0, c + 0), *[one.clone() for one in inputs])
    seen, bases = [], []

    def compare(one, other):
        seen.extend(other())
        bases.append(base.clone())
        return timing(0.5)

    FinalChoice(
        gm, "a key", Settings(store=tmp_path), CpuPlatform(), Store.open(tmp_path), compare
    ).between(gm, nothing_else)(*inputs)  # fmt: skip
    (during,) = bases
    assert torch.equal(during, torch.arange(24.0))
    expected = torch.arange(24.0)
    expected[2:14] += 1.0
    assert torch.equal(seen[1], expected.view(4, 6)[:, ::2]) and torch.equal(seen[2], expected[:1].expand(5))


def test_a_comparison_that_fails_leaves_what_was_compiled(tmp_path):
    def broken(one, other):
        raise RuntimeError("no clock")

    gm, examples = graph_of(normalised, torch.randn(4, 8), torch.randn(8))
    choice = choice_of(gm, examples, tmp_path, broken)
    assert float(choice.between(lambda *inputs: (torch.full((), 7.0),), nothing_else)(*examples)[0]) == 7.0
    assert choice_of(gm, examples, tmp_path, None).known is None


def test_plain_inductor_is_taken_where_it_is_faster_than_with_kernels(tmp_path):
    gm, examples = graph_of(normalised, torch.randn(4, 8), torch.randn(8))
    sides = {
        name: (lambda *inputs, value=value: (torch.full((), value),))
        for name, value in (("compiled", 1.0), ("plain", 2.0))
    }

    def compare(one, other):
        return timing(1.4 if float(other()[0].flatten()[0]) == 2.0 else 1.1)

    choice = choice_of(gm, examples, tmp_path, compare)
    call = choice.between(sides["compiled"], lambda inputs: sides["plain"])
    assert float(call(*examples)[0]) == 2.0
    assert choice_of(gm, examples, tmp_path, None, search="lookup").settled() == "inductor"
    # Whoever asks for more than was measured gets the kernels.
    assert choice_of(gm, examples, tmp_path, None, min_speedup=1.5).settled() is None


class _Counting(CpuExecutor):
    """Knows what each step holds by what it returns."""

    def __init__(self, peaks):
        super().__init__()
        self.peaks = peaks

    def peak_bytes(self, call):
        return self.peaks[float(call()[0].flatten()[0])]


@pytest.mark.parametrize(
    ("eager_bytes", "chosen", "words"),
    [
        (2**24, 2.0, "runs eagerly, 2.00×"),
        (2**24 + 2**18, 2.0, "runs eagerly, 2.00×"),
        (2**25, 1.0, "stays as compiled: eager needs more memory"),
    ],
)
def test_eager_must_not_need_more_memory(tmp_path, monkeypatch, eager_bytes, chosen, words):
    executor = _Counting({1.0: 2**24, 2.0: eager_bytes})
    monkeypatch.setattr(final_choice, "executor_for", lambda name: executor)
    gm, examples = graph_of(lambda x: x * 0 + 2.0, torch.ones(4))
    choice = choice_of(gm, examples, tmp_path, lambda one, other: timing(2.0))
    report.reset()
    call = choice.between(lambda *inputs: (torch.full((4,), 1.0),), nothing_else)
    assert float(call(*examples)[0][0]) == chosen
    assert report.last_run().graph_verdicts[0].verdict.startswith(words)
    assert choice_of(gm, examples, tmp_path, None).settled() == (None if chosen == 1.0 else "eager")


def test_memory_is_only_looked_at_where_eager_is_faster(tmp_path, monkeypatch):
    monkeypatch.setattr(final_choice, "executor_for", lambda name: _Counting({}))
    gm, examples = graph_of(lambda x: x * 0 + 2.0, torch.ones(4))
    report.reset()
    choice = choice_of(gm, examples, tmp_path, lambda one, other: timing(0.9))
    choice.between(lambda *inputs: (torch.full((4,), 1.0),), nothing_else)(*examples)
    assert [row.verdict for row in report.last_run().graph_verdicts] == ["stays as compiled: eager not faster"]


def test_plain_inductor_may_need_more_memory_than_kernels(tmp_path, monkeypatch):
    executor = _Counting({1.0: 2**24, 2.0: 2**25, 3.0: 2**25})
    monkeypatch.setattr(final_choice, "executor_for", lambda name: executor)
    gm, examples = graph_of(lambda x: x * 0 + 2.0, torch.ones(4))
    choice = choice_of(gm, examples, tmp_path, lambda one, other: timing(2.0))
    call = choice.between(
        lambda *inputs: (torch.full((4,), 1.0),), lambda inputs: lambda *given: (torch.full((4,), 3.0),)
    )
    assert float(call(*examples)[0][0]) == 3.0


class _Asynchronous(CpuExecutor):
    """Steps take what a script says, as called and with a head start; what they return tells them apart."""

    submits_ahead = True

    def __init__(self, as_called_us, alone_us):
        super().__init__()
        self.as_called_us, self.alone_us = as_called_us, alone_us

    def measure(self, timed, rounds, cold):
        times_us = self.alone_us if self.head_start_s else self.as_called_us
        return [[times_us[float(call()[0].flatten()[0])]] * rounds for call in timed]


@pytest.mark.parametrize(
    ("as_called_us", "alone_us", "chosen"),
    [
        ((300.0, 200.0), (300.0, 200.0), 2.0),
        ((300.0, 200.0), (100.0, 200.0), 1.0),
        ((200.0, 300.0), (300.0, 200.0), 1.0),
    ],
    ids=["faster either way", "faster only to submit", "slower to submit"],
)
def test_where_calls_only_submit_work_the_challenger_has_to_win_both_ways(
    tmp_path, monkeypatch, as_called_us, alone_us, chosen
):
    names = (1.0, 2.0)
    executor = _Asynchronous(dict(zip(names, as_called_us, strict=True)), dict(zip(names, alone_us, strict=True)))
    monkeypatch.setattr(final_choice, "executor_for", lambda name: executor)
    gm, examples = graph_of(lambda x: x * 0 + 2.0, torch.ones(4))
    choice = choice_of(gm, examples, tmp_path, None)
    call = choice.between(lambda *inputs: (torch.full((4,), 1.0),), nothing_else)
    assert float(call(*examples)[0][0]) == chosen


class _Contest:
    """In place of the clock's: eager is three times as fast."""

    def __init__(self, executor, baselines):
        pass

    def time(self, candidate, decide_at):
        return timing(3.0)


def test_the_backend_runs_eagerly_what_is_faster_so_and_compiles_nothing_the_next_time(store, monkeypatch):
    monkeypatch.setattr(final_choice, "Contest", _Contest)
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8)
    options = {"kevolve.budget_s": 0.0, "kevolve.strict": True}
    report.reset()
    torch._dynamo.reset()
    first = torch.compile(normalised, backend="kevolve", options=options)(x, weight)
    assert report.last_run().graph_verdicts[-1].verdict.startswith("runs eagerly")

    def refuse(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr(backend, "compile_fx", refuse)
    torch._dynamo.reset()
    lookup = torch.compile(normalised, backend="kevolve", options={**options, "kevolve.search": "lookup"})
    again = lookup(x, weight)
    assert torch.equal(first, again)
    (gradient,) = torch.autograd.grad(again.sum(), x)
    assert gradient.shape == x.shape


def test_forward_and_backward_with_kernels_are_timed_beside_plain_inductor(store, monkeypatch):
    plain = []

    class Contest(_Contest):
        def time(self, candidate, decide_at):
            return timing(0.5)

    def spy(gm, example_inputs, **options):
        plain.append("inner_compile" not in options)
        return compile_fx(gm, example_inputs, **options)

    monkeypatch.setattr(final_choice, "Contest", Contest)
    monkeypatch.setattr(backend, "compile_fx", spy)
    monkeypatch.setattr(SwapPass, "is_unconfirmed", True)
    torch._dynamo.reset()
    x, weight = torch.randn(64, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    options = {"kevolve.budget_s": 0.0, "kevolve.strict": True}
    function = torch.compile(lambda x, w: functional.layer_norm(x, (64,), w).relu(), backend="kevolve", options=options)
    function(x, weight).sum().backward()
    assert plain == [False, True]
    assert weight.grad is not None and weight.grad.shape == weight.shape


def test_who_wants_cuda_graphs_is_not_given_eager(store, monkeypatch):
    monkeypatch.setattr(final_choice, "Contest", _Contest)
    report.reset()
    torch._dynamo.reset()
    options = {"kevolve.budget_s": 0.0, "kevolve.strict": True}
    torch.compile(normalised, backend="kevolve", options={**options, "triton.cudagraphs": True})(
        torch.randn(4, 8), torch.randn(8)
    )
    assert all(row.eager_us is None for row in report.last_run().graph_verdicts)
