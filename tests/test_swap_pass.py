"""The pass from graph to swapped graph, with a judge that accepts everything, so that nothing depends on the clock."""

from __future__ import annotations

import logging
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.graph import GraphLowering

from kevolve_inductor import report, whole_graph
from kevolve_inductor.cache.store import Store
from kevolve_inductor.evaluate.evaluation import (
    Baselines,
    BuildFailed,
    Diagnosis,
    GraphVerdict,
    ModeTimes,
    Passed,
    Refused,
)
from kevolve_inductor.exc import ResourceError, WorkerError
from kevolve_inductor.graph.ranges import seen_ranges
from kevolve_inductor.kernel import Kernel
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.settings import Settings
from kevolve_inductor.swap_pass import SwapPass

DIAGNOSIS = Diagnosis("memory", "a test", 1e9, 1e9, 0.5)


class Judge:
    """Accepts every kernel, the later ones as the slower ones."""

    def __init__(self, graph_us=(100.0, 50.0), correct=True, evaluation=None, mode_times=None):
        self.opened, self.evaluated, self.checked, self.modes = [], 0, 0, []
        self.mode_times = mode_times or ModeTimes()
        self.graph_us, self.correct, self.evaluation = graph_us, correct, evaluation

    def open(self, region, workload, first=()):
        self.opened.append((region, workload))
        return Baselines({"eager": 100.0, "inductor": 80.0}, {})

    def prepare(self, kernels):
        pass

    def is_built(self, kernel):
        return True

    def evaluate(self, kernel, beat=0.0, surely=False):
        self.evaluated += 1
        if self.evaluation is not None:
            return self.evaluation
        times = {"eager": 100.0, "inductor": 80.0}
        return Passed(20.0 + self.evaluated, times, 4.0 - 0.01 * self.evaluated, 3.0, 0.0, DIAGNOSIS, 0.1)

    def check_graph(self, graph, workload, swaps):
        self.checked += 1
        return GraphVerdict(*self.graph_us, self.correct)

    def time_mode(self, graph, workload, swaps, mode, limit_s):
        self.modes.append((mode, len(swaps)))
        return self.mode_times

    def close(self):
        pass


def gate(x):
    p = torch.softmax(x, -1)
    values, indices = torch.topk(p, 2)
    return values / values.sum(-1, keepdim=True), indices


@pytest.fixture
def settings(tmp_path):
    return Settings(store=tmp_path / "store", trials=3, budget_s=30.0)


def compiled(function, settings, judge, inputs, *, dynamic=False, before=(), passes=None, clock=time.monotonic):
    @contextmanager
    def factory(platform, store, chosen):
        yield judge

    report.reset()
    torch._dynamo.reset()

    def backend(gm, example_inputs):
        swap = SwapPass(
            settings, CpuPlatform(), Store.open(settings.store), factory, seen_ranges(example_inputs), before, clock
        )
        if passes is not None:
            passes.append(swap)
        with swap.settings_restored():
            return compile_fx(gm, example_inputs, config_patches={"post_grad_custom_post_pass": swap})

    result = torch.compile(function, backend=backend, dynamic=dynamic)
    return result, result(*inputs)


def test_swapped_kernel_gives_eagers_values(settings):
    x = torch.randn(100, 64)
    _, (weights, indices) = compiled(gate, settings, Judge(), (x,))
    expected = gate(x)
    torch.testing.assert_close(weights, expected[0])
    assert torch.equal(indices, expected[1])
    row = report.last_run().regions[0]
    assert row.verdict == "swapped" and row.family and row.trials == 3
    assert report.last_run().searched == 1


def test_second_compile_looks_up_and_gives_the_same_bits(settings):
    x = torch.randn(100, 64)
    with inductor_config.patch(force_disable_caches=True):
        _, first = compiled(gate, settings, Judge(), (x,))
        judge = Judge()
        _, second = compiled(gate, replace(settings, search="lookup"), judge, (x,))
    assert judge.opened == [] and report.last_run().searched == 0
    assert report.last_run().regions[0].verdict == "swapped (from store)"
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_identical_regions_are_one_search(settings):
    def twice(x, y):
        return gate(x), gate(y)

    judge = Judge()
    x, y = torch.randn(100, 64), torch.randn(100, 64)
    _, (first, second) = compiled(twice, settings, judge, (x, y))
    assert len(judge.opened) == 1
    torch.testing.assert_close(first[0], gate(x)[0])
    torch.testing.assert_close(second[0], gate(y)[0])


def test_slower_graph_undoes_the_swaps(settings):
    x = torch.randn(100, 64)
    _, result = compiled(gate, settings, Judge(graph_us=(50.0, 100.0)), (x,))
    assert report.last_run().regions[0].verdict.startswith("left")
    assert torch.equal(result[1], gate(x)[1])


def test_different_graph_undoes_the_swaps(settings):
    compiled(gate, settings, Judge(correct=False), (torch.randn(100, 64),))
    assert report.last_run().regions[0].verdict.startswith("left")


def test_failing_candidates_leave_inductors_code(settings):
    judge = Judge(evaluation=BuildFailed("compile", "no"))
    x = torch.randn(100, 64)
    _, result = compiled(gate, settings, judge, (x,))
    assert report.last_run().regions[0].verdict == "left: nothing faster found"
    assert judge.checked == 0
    assert torch.equal(result[1], gate(x)[1])


def test_broken_evaluator_loses_only_its_region(settings, caplog):
    class Broken(Judge):
        def open(self, region, workload, first=()):
            raise WorkerError("the worker is gone")

    x = torch.randn(100, 64)
    _, result = compiled(gate, settings, Broken(), (x,))
    assert "could not be evaluated" in report.last_run().regions[0].verdict
    assert torch.equal(result[1], gate(x)[1])


def test_a_region_that_does_not_fit_in_memory_is_left_with_that_reason_even_where_failures_raise(settings):
    class Full(Judge):
        def open(self, region, workload, first=()):
            raise ResourceError("bytes of memory", 3000, 2000)

    x = torch.randn(100, 64)
    judge = Full()
    _, result = compiled(gate, replace(settings, strict=True), judge, (x,))
    assert "does not fit" in report.last_run().regions[0].verdict
    assert "3000" in report.last_run().regions[0].verdict
    assert judge.evaluated == 0 and torch.equal(result[1], gate(x)[1])


def test_a_machine_too_noisy_to_decide_is_said_so_and_nothing_is_remembered(settings):
    class Noisy(Judge):
        def evaluate(self, kernel, beat=0.0, surely=False):
            return Refused("noise", "0.6 to 1.9") if surely else super().evaluate(kernel, beat)

    x = torch.randn(100, 64)
    with inductor_config.patch(force_disable_caches=True):
        compiled(gate, settings, Noisy(), (x,))
        assert "too noisy: 0.6 to 1.9" in report.last_run().regions[0].verdict
    assert list(Store.open(settings.store).entries()) == []


def test_what_is_too_fast_to_be_true_is_kept_for_review(settings):
    class Suspicious(Judge):
        def evaluate(self, kernel, beat=0.0, surely=False):
            self.seen = kernel
            return Refused("ceiling", "moves 9000 GB/s where 40 GB/s was measured")

    judge = Suspicious()
    compiled(gate, settings, judge, (torch.randn(100, 64),))
    kept = Store.open(settings.store).recall("review", judge.seen.digest)
    assert Kernel.from_json(kept["kernel"]) == judge.seen and kept["evaluation"]["check"] == "ceiling"


def test_fuel_limits_the_swaps(settings):
    def two(x, y):
        return gate(x), torch.sort(y, -1)

    judge = Judge()
    inputs = (torch.randn(100, 64), torch.randn(50, 32))
    compiled(two, replace(settings, fuel=1), judge, inputs)
    verdicts = [row.verdict for row in report.last_run().regions]
    assert len(verdicts) == 2 and verdicts.count("swapped") == 1


def test_a_first_region_whose_baselines_take_long_leaves_time_to_the_others(settings):
    class Slow(Judge):
        now = 0.0

        def open(self, region, workload, first=()):
            # The workers start, and their compiler's headers are compiled.
            self.now += 5.0 if self.opened else 30.0
            return super().open(region, workload, first)

        def evaluate(self, kernel, beat=0.0, surely=False):
            self.now += 8.0 if len(self.opened) == 1 else 1.0
            return super().evaluate(kernel, beat, surely)

    def three(x, y, z):
        return gate(x), gate(y), gate(z)

    judge = Slow()
    inputs = (torch.randn(400, 64), torch.randn(200, 64), torch.randn(100, 64))
    compiled(three, replace(settings, trials=None, budget_s=60.0), judge, inputs, clock=lambda: judge.now)
    assert [row.verdict for row in report.last_run().regions] == ["swapped"] * 3


def test_report_is_written_where_it_was_asked_for(settings, tmp_path):
    compiled(gate, replace(settings, report=tmp_path / "report"), Judge(), (torch.randn(100, 64),))
    assert "swapped" in (tmp_path / "report" / "report.txt").read_text()


def test_interrupted_search_keeps_the_best_so_far(settings):
    class Interrupted(Judge):
        def evaluate(self, kernel, beat=0.0, surely=False):
            if self.evaluated == 2:
                raise KeyboardInterrupt
            return super().evaluate(kernel, beat, surely)

    with pytest.raises(KeyboardInterrupt):
        compiled(gate, settings, Interrupted(), (torch.randn(100, 64),))
    entries = list(Store.open(settings.store).entries())
    assert [entry.verdict for entry in entries] == ["kernel"]


def test_dynamic_rows_use_one_kernel_for_every_size(settings):
    with inductor_config.patch(force_disable_caches=True):
        function, _ = compiled(gate, settings, Judge(), (torch.randn(100, 64),), dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for rows in (2, 7, 33, 257):
                x = torch.randn(rows, 64)
                weights, indices = function(x)
                torch.testing.assert_close(weights, gate(x)[0])
                assert torch.equal(indices, gate(x)[1])


def test_training_swaps_forward_and_keeps_gradients(settings):
    def loss(x, w):
        values, _ = gate(x @ w)
        return values.square().sum()

    x, w = torch.randn(64, 16), torch.randn(16, 32, requires_grad=True)
    expected = torch.autograd.grad(loss(x, w), w)[0]
    passes = []
    _, result = compiled(loss, settings, Judge(), (x, w), passes=passes)
    torch.testing.assert_close(torch.autograd.grad(result, w)[0], expected, rtol=1e-4, atol=1e-5)
    # Each graph was measured, but not both together.
    assert passes[0].is_unconfirmed


@pytest.mark.parametrize(
    ("judge", "unconfirmed"),
    [(Judge(), False), (Judge(graph_us=(None, None)), True), (Judge(evaluation=BuildFailed("compile", "no")), False)],
    ids=["measured", "not measured", "nothing of ours"],
)
def test_what_was_not_measured_as_a_whole_is_said_so(settings, judge, unconfirmed):
    passes = []
    compiled(gate, settings, judge, (torch.randn(100, 64),), passes=passes)
    assert passes[0].is_unconfirmed is unconfirmed


def test_undecided_region_is_searched_by_the_next_compile_although_inductor_caches(settings):
    x = torch.randn(100, 64)
    compiled(gate, replace(settings, budget_s=0.0), Judge(), (x,))
    assert report.last_run().regions[0].verdict == "left: budget spent"
    compiled(gate, settings, Judge(), (x,))
    assert report.last_run().searched == 1


def test_emptied_store_is_searched_again_although_inductor_caches(settings, tmp_path):
    x = torch.randn(100, 64)
    for folder in ("one", "other"):
        compiled(gate, replace(settings, store=tmp_path / folder), Judge(), (x,))
        assert report.last_run().searched == 1


def test_lookup_does_not_hide_a_later_search(settings):
    x = torch.randn(100, 64)
    compiled(gate, replace(settings, search="lookup"), Judge(), (x,))
    assert report.last_run().regions[0].verdict == "left: not in the store"
    compiled(gate, settings, Judge(), (x,))
    assert report.last_run().searched == 1


def test_uuid_changes_with_the_store_and_the_settings(settings):
    def uuid(chosen, store):
        return SwapPass(chosen, CpuPlatform(), store, None, ()).uuid()

    store = Store.open(settings.store)
    before = uuid(settings, store)
    assert before == uuid(settings, Store.open(settings.store))
    assert before != uuid(replace(settings, min_speedup=1.5), store)
    compiled(gate, settings, Judge(), (torch.randn(100, 64),))
    assert before != uuid(settings, Store.open(settings.store))


def test_users_own_pass_runs_first_and_joins_the_uuid(settings):
    seen = []

    class Mine(CustomGraphPass):
        def __init__(self, name):
            self.name = name

        def __call__(self, graph):
            seen.append([str(node.target) for node in graph.nodes])

        def uuid(self):
            return self.name

    compiled(gate, settings, Judge(), (torch.randn(100, 64),), before=(Mine("a"),))
    assert "aten.topk.default" in seen[0]
    store = Store.open(settings.store)
    ids = {
        SwapPass(settings, CpuPlatform(), store, None, (), before).uuid() for before in ((), (Mine("a"),), (Mine("b"),))
    }
    assert len(ids) == 3
    assert SwapPass(settings, CpuPlatform(), store, None, (), (Mine(None),)).uuid() is None


def test_inputs_ranges_are_seen_and_carried(settings):
    def lookup(ids, offsets, x):
        bounded = ids % 40
        return gate(x), bounded, offsets[1:] - offsets[:-1]

    judge = Judge()
    compiled(lookup, settings, judge, (torch.arange(50), torch.tensor([0, 3, 9]), torch.randn(100, 64)))
    assert judge.opened


def test_a_graph_left_after_a_failure_is_tried_again_although_inductor_caches_it(tmp_path, monkeypatch):
    from torch._inductor.utils import fresh_cache

    from kevolve_inductor import backend, swap_pass

    calls = []

    def broken(*args, **kwargs):
        calls.append(args)
        raise RuntimeError("a defect that is mended later")

    monkeypatch.setattr(swap_pass, "discover", broken)
    options = {"kevolve.store": str(tmp_path / "store"), "kevolve.search": "lookup"}
    with fresh_cache():
        for _ in range(2):
            torch._dynamo.reset()
            torch.compile(gate, backend=backend.kevolve, options=options)(torch.randn(100, 64))
    assert len(calls) == 2


def test_one_warning_and_inductors_result_when_the_pass_fails(tmp_path, caplog, monkeypatch):
    from kevolve_inductor import backend, swap_pass
    from kevolve_inductor.report import warnings

    def broken(*args, **kwargs):
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(swap_pass, "discover", broken)
    warnings._said.clear()
    options = {"kevolve.store": str(tmp_path / "store")}
    x = torch.randn(100, 64)
    with caplog.at_level(logging.WARNING, "kevolve_inductor"), inductor_config.patch(force_disable_caches=True):
        result = torch.compile(gate, backend=backend.kevolve, options=options)(x)
        torch._dynamo.reset()
        torch.compile(gate, backend=backend.kevolve, options=options)(x)
    assert torch.equal(result[1], gate(x)[1])
    assert len([record for record in caplog.records if "a defect of ours" in record.message]) == 1
    torch._dynamo.reset()
    with pytest.raises(Exception, match="a defect of ours"):
        torch.compile(gate, backend=backend.kevolve, options={**options, "kevolve.strict": True})(x)


def test_a_family_that_fails_costs_its_own_kernels_only(settings, caplog, monkeypatch):
    from kevolve_inductor import swap_pass

    class Broken:
        name = "broken"

        def find(self, graph, device):
            raise IndexError("beyond the end")
            yield

    monkeypatch.setattr(swap_pass, "FAMILIES", (Broken(), *swap_pass.FAMILIES))
    x = torch.randn(100, 64)
    with caplog.at_level(logging.WARNING, "kevolve_inductor"), inductor_config.patch(force_disable_caches=True):
        for _ in range(2):
            compiled(gate, settings, Judge(), (x,))
        assert report.last_run().regions[0].verdict.startswith("swapped")
        assert len([record for record in caplog.records if "broken: IndexError: beyond the end" in record.message]) == 1
        with pytest.raises(Exception, match="beyond the end"):
            compiled(gate, replace(settings, strict=True), Judge(), (x,))


def code_of(training, **how):
    from torch._inductor.utils import run_and_get_code

    def loss(x: torch.Tensor) -> torch.Tensor:
        values, places = gate(x)
        return values.sum() + torch.sort(x, dim=1).values.exp().sum() + places.sum()

    torch._dynamo.reset()
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).requires_grad_(training)
    compiled = torch.compile(loss, **how)
    with inductor_config.patch(force_disable_caches=True):
        found = run_and_get_code(lambda: compiled(x).backward() if training else compiled(x))[1]
    # The first line counts the graphs of the process.
    return [re.sub(r"^# AOT ID: .*", "", code) for code in found]


@pytest.fixture(scope="module", params=[False, True], ids=str)
def plain(request):
    """Whether there is a backward graph, and what Inductor alone generates."""
    return request.param, code_of(request.param)


@pytest.mark.parametrize("off", [{"kevolve.search": "off"}, {"kevolve.enabled": False}], ids=str)
def test_switched_off_the_generated_code_is_inductors_byte_for_byte(tmp_path, off, plain):
    training, code = plain
    mine = code_of(training, backend="kevolve", options={**off, "kevolve.store": str(tmp_path / "store")})
    assert mine == code and len(code) == (2 if training else 1)
    assert not (tmp_path / "store").exists()


@pytest.fixture
def with_a_mode(monkeypatch):
    """A CPU on which Inductor has a mode of its own, and every graph is worth it."""
    monkeypatch.setattr(CpuPlatform, "modes", lambda self: {"tuned": {"coordinate_descent_tuning": True}})
    monkeypatch.setattr(whole_graph, "_LEAST_MODE_GRAPH_S", 0.0)


def seen_settings(function, settings, judge, inputs):
    """What the graph was lowered under."""
    seen = []
    with inductor_config.patch(force_disable_caches=True):
        lowered = GraphLowering.run

        def run(self, *args):
            seen.append(inductor_config.coordinate_descent_tuning)
            return lowered(self, *args)

        with patch.object(GraphLowering, "run", run):
            compiled(function, settings, judge, inputs)
    assert inductor_config.coordinate_descent_tuning is False
    return seen[-1], report.last_run()


def test_a_faster_mode_of_inductors_is_taken_with_the_kernels_and_remembered(settings, with_a_mode):
    x = torch.randn(100, 64)
    judge = Judge((100.0, 60.0), mode_times=ModeTimes(100.0, 60.0, 70.0, 40.0))
    tuned, run = seen_settings(gate, settings, judge, (x,))
    assert tuned and judge.modes == [("tuned", 1)]
    assert run.regions[0].verdict == "swapped"
    assert run.graph_verdicts[0].verdict == "Inductor tuned, with kernels"
    judge = Judge()
    tuned, run = seen_settings(gate, replace(settings, search="lookup"), judge, (x,))
    assert tuned and judge.modes == [] and run.regions[0].verdict == "swapped (from store)"


def test_a_mode_that_beats_the_kernels_is_taken_without_them(settings, with_a_mode):
    judge = Judge((100.0, 60.0), mode_times=ModeTimes(100.0, 60.0, 20.0, 45.0))
    tuned, run = seen_settings(gate, settings, judge, (torch.randn(100, 64),))
    assert tuned and run.regions[0].verdict.startswith("left: whole graph")
    assert run.graph_verdicts[0].kevolve_us == 20.0


@pytest.mark.parametrize(
    "times",
    [
        ModeTimes(),
        ModeTimes(100.0, 60.0),
        ModeTimes(100.0, 60.0, 59.5, 59.0),
        ModeTimes(100.0, 60.0, 57.0, None),
        ModeTimes(mode_us=1.0),
        ModeTimes(inductor_us=100.0, mode_us=50.0),
    ],
)
def test_a_mode_that_is_no_faster_or_was_not_measured_is_left(settings, with_a_mode, times):
    judge = Judge((100.0, 60.0), mode_times=times)
    tuned, run = seen_settings(gate, settings, judge, (torch.randn(100, 64),))
    assert not tuned and run.regions[0].verdict == "swapped" and run.graph_verdicts[0].verdict == "confirmed"


def test_a_mode_is_looked_at_where_no_region_is_found_but_not_where_the_user_chose(settings, with_a_mode):
    judge = Judge(mode_times=ModeTimes(inductor_us=100.0, mode_us=50.0))
    tuned, _ = seen_settings(lambda x: (x @ x.t()).relu(), settings, judge, (torch.randn(65, 64),))
    assert tuned and judge.modes == [("tuned", 0)]
    judge = Judge(mode_times=ModeTimes(inductor_us=100.0, mode_us=50.0))
    torch._dynamo.reset()
    with inductor_config.patch(coordinate_descent_tuning=True):
        compiled(lambda x: (x @ x.t()).relu(), settings, judge, (torch.randn(66, 64),))
    assert judge.modes == []


def test_of_several_modes_the_fastest_is_taken_and_layouts_only_matter_to_convolutions(settings, monkeypatch):
    modes = {
        "kept": {"layout_optimization": False},
        "tuned": {"coordinate_descent_tuning": True},
        "both": {"coordinate_descent_tuning": True, "layout_optimization": False},
    }
    monkeypatch.setattr(CpuPlatform, "modes", lambda self: modes)
    monkeypatch.setattr(whole_graph, "_LEAST_MODE_GRAPH_S", 0.0)

    class Several(Judge):
        def time_mode(self, graph, workload, swaps, mode, limit_s):
            super().time_mode(graph, workload, swaps, mode, limit_s)
            return ModeTimes(inductor_us=100.0, mode_us={"kept": 60.0, "tuned": 50.0, "both": 70.0}[mode])

    judge = Several()
    tuned, run = seen_settings(lambda x: (x @ x.t()).relu(), settings, judge, (torch.randn(67, 64),))
    assert tuned and judge.modes == [("tuned", 0)]
    judge = Several()
    x, weight = torch.randn(2, 3, 20, 20), torch.randn(4, 3, 3, 3)
    tuned, run = seen_settings(lambda x, w: torch.conv2d(x, w).relu(), settings, judge, (x, weight))
    assert tuned and [mode for mode, _ in judge.modes] == ["kept", "tuned", "both"]
    assert run.graph_verdicts[0].kevolve_us == 50.0 and inductor_config.layout_optimization


def test_no_mode_is_looked_at_where_kernels_are_the_whole_graph_and_far_ahead(settings, with_a_mode):
    judge = Judge((100.0, 15.0), mode_times=ModeTimes(100.0, 15.0, 60.0, 10.0))
    tuned, _ = seen_settings(gate, settings, judge, (torch.randn(100, 64),))
    assert not tuned and judge.modes == []


def test_an_imported_kernel_runs_only_where_its_source_is_trusted(settings):
    x = torch.randn(100, 64)
    compiled(gate, settings, Judge(), (x,))
    store = Store.open(settings.store)
    (entry,) = store.entries()
    store.put(replace(entry, source="team"), store.kernel(entry.kernel))

    def verdict(**changes):
        judge = Judge()
        compiled(gate, replace(settings, **changes), judge, (x,))
        return report.last_run().regions[0].verdict, judge.evaluated

    looking = {"search": "lookup"}
    assert verdict(**looking) == ("left: in the store only from 'team', which is not trusted", 0)
    assert verdict(**looking, trust=("local", "team")) == ("swapped (from store)", 0)
    assert verdict(**looking, trust=(entry.key,)) == ("swapped (from store)", 0)
    found, tried = verdict()
    assert found == "swapped" and tried > 0 and store.get(entry.key).source == "local"
    assert verdict(**looking, trust=("team",))[0].startswith("left: in the store only from 'local'")
