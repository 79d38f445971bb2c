"""The benchmark's own judgement: what counts as agreement, which cases there are, what the table says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import contenders, lanes, longtail, merge, sweep
from benchmarks.agreement import disagreement
from benchmarks.cases import CASES, Instance, Selection
from benchmarks.clock import Ceilings, Clock, Prepared
from benchmarks.regions import instance_of, regions_of
from benchmarks.shapes import drawn
from benchmarks.shards import Shard
from benchmarks.swept import distance

TOP2 = Selection(1, lambda scores: scores)


def top2(scores: torch.Tensor) -> Instance:
    return Instance(lambda x: tuple(torch.topk(x, 2)), (scores,), selection=TOP2)


def test_each_family_has_published_cases_and_three_variations() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for family in {case.family for case in CASES}:
        origins = [case.origin for case in CASES if case.family == family]
        assert origins.count("variation") >= 3
        assert origins.count("table") >= 1


@pytest.mark.parametrize("case", [case for case in CASES if "cpu" in case.devices], ids=lambda case: case.name)
def test_a_case_runs_in_eager_and_agrees_with_itself(case: Any) -> None:
    instance = case.make("cpu")
    if sum(tensor.nbytes for tensor in instance.inputs) > 2**28:
        pytest.skip("takes long to compute twice, and has a smaller case beside it")
    outputs = instance.function(*instance.inputs)
    assert disagreement(outputs, instance.function(*instance.inputs), instance) is None


def test_equal_scores_may_be_selected_in_any_order() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 0.0]])
    values = torch.tensor([[3.0, 3.0]])
    first, second = torch.tensor([[0, 2]]), torch.tensor([[2, 0]])
    assert disagreement((values, first), (values, second), top2(scores)) is None


@pytest.mark.parametrize(
    ("indices", "problem"), [([[0, 0]], "selected twice"), ([[0, 1]], "1 of 2 elements"), ([[0, 4]], "out of range")]
)
def test_a_wrong_selection_is_told_apart(indices: list[list[int]], problem: str) -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 0.0]])
    values = torch.tensor([[3.0, 3.0]])
    found = disagreement((values, torch.tensor([[0, 2]])), (values, torch.tensor(indices)), top2(scores))
    assert found is not None and problem in found


def test_integers_must_be_equal_and_nan_agrees_with_nan() -> None:
    plain = Instance(lambda x: x, (torch.zeros(2),))
    assert disagreement(torch.tensor([1, 2]), torch.tensor([1, 3]), plain) is not None
    assert disagreement(torch.tensor([1.0]), torch.tensor([1]), plain) is not None
    nan = torch.tensor([torch.nan, 1.0])
    assert disagreement(nan, nan.clone(), plain) is None
    assert disagreement(nan, torch.tensor([0.0, 1.0]), plain) is not None


def test_what_differs_from_eager_agrees_where_it_is_as_near_to_float64() -> None:
    eager, better, worse = torch.tensor([1.0]), torch.tensor([1.1]), torch.tensor([0.7])
    plain = Instance(lambda x: x, (eager,))

    def exact() -> torch.Tensor:
        return torch.tensor([1.1], dtype=torch.float64)

    assert disagreement(eager, better, plain) is not None
    assert disagreement(eager, better, plain, exact) is None
    assert "further from float64" in str(disagreement(eager, worse, plain, exact))


def test_the_floor_is_the_larger_of_memory_and_arithmetic() -> None:
    ceilings = Ceilings(1e9, {"float32": 1e9})
    assert ceilings.floor_us(2000, 1000, torch.float32) == pytest.approx(2.0)
    assert ceilings.floor_us(1000, 3000, torch.float32) == pytest.approx(3.0)
    assert ceilings.floor_us(1000, 0, torch.bfloat16) == pytest.approx(1.0)


class StillClock(Clock):
    """Every call takes one microsecond."""

    device = "cpu"

    def prepare(self, call: Any) -> Prepared:
        return Prepared(call, call(), replayed=False)

    def time_once_us(self, prepared: Prepared) -> float:
        return 1.0

    def chip(self) -> str:
        return "none"

    def measure_ceilings(self) -> Ceilings:
        return Ceilings(1e9)


def test_a_case_that_raises_is_a_row_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(device: str) -> Instance:
        raise RuntimeError("no such operator")

    case = longtail.Case("broken", "rows", "variation", ("cpu",), broken)
    monkeypatch.setattr(longtail, "CASES", (case,))
    monkeypatch.setattr(longtail, "clock_for", lambda device: StillClock())
    out = tmp_path / "out.json"
    assert longtail.main(["--device", "cpu", "--out", str(out)]) == 1
    (row,) = json.loads(out.read_text())["cases"]
    assert row["error"] == "RuntimeError: no such operator"


def test_a_name_that_matches_nothing_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert longtail.main(["--device", "cpu", "--cases", "nothing-like-this"]) == 1
    assert "nothing-like-this" in capsys.readouterr().err


def test_shards_hold_every_case_once() -> None:
    shards = [Shard(number, 3).of(CASES) for number in (1, 2, 3)]
    assert sorted(case.name for shard in shards for case in shard) == sorted(case.name for case in CASES)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    with pytest.raises(argparse.ArgumentTypeError):
        Shard.parse("4/3")


def test_processes_share_cases_out_and_one_takes_the_large_ones_first(tmp_path: Path) -> None:
    cases = list(drawn(2, 1))
    one, other = (longtail._unclaimed(tmp_path / "claims", cases) for _ in range(2))
    taken = [next(one), next(other), next(other), *one]
    assert [case.name for case in taken] == [case.name for case in cases] and not list(other)
    assert [case.name for case in longtail._unclaimed(None, cases)] == [case.name for case in cases]


def test_lanes_run_every_case_once_and_join_what_they_found(tmp_path: Path) -> None:
    wanted = ["discounted-returns", "exclusive-offsets"]
    arguments = ["--cases", *wanted, "--device", "cpu", "--search", "lookup", "--quick"]
    out = tmp_path / "joined.json"
    assert lanes.main(["2", "--out", str(out), *arguments, "--large", wanted[1]]) == 0
    document = json.loads(out.read_text())
    assert sorted(row["name"] for row in document["cases"]) == sorted(wanted)
    assert document["shards"] in (1, 2) and document["planned"] == 2
    assert all(row["error"] is None for row in document["cases"])


def test_a_familys_drawn_cases_do_not_depend_on_how_many_are_drawn() -> None:
    few, many = ({case.name: case for case in drawn(count, 0)} for count in (1, 3))
    assert few.keys() < many.keys()
    for name, case in few.items():
        made = []
        for one in (case, many[name]):
            torch.manual_seed(0)
            made.append(contenders.described(one.make("cpu").inputs))
        assert made[0] == made[1]


def test_a_name_chooses_its_case_alone_and_a_part_of_names_all_that_have_it() -> None:
    def chosen(*wanted: str) -> list[str]:
        return [case.name for case in longtail.select(list(wanted), "cuda")]

    assert chosen("cross-entropy") == ["cross-entropy"]
    assert set(chosen("cross-entr")) > {"cross-entropy", "cross-entropy-gradient", "smoothed-cross-entropy"}
    assert set(chosen("cross-entropy", "scans")) == {"cross-entropy", *chosen("scans")} and "running-sum" in chosen(
        "scans"
    )
    assert chosen() == [case.name for case in CASES if "cuda" in case.devices]


def test_merging_joins_shards_in_the_order_of_their_numbers() -> None:
    def shard(*names: str) -> dict[str, Any]:
        rows = [
            {
                "name": name,
                "family": "chains",
                "error": None,
                "disagreements": {},
                "speedup": 2.0,
                "origin": "variation",
            }
            for name in names
        ]
        return {
            "benchmark": "curve", "chip": "X", "device": "cpu", "versions": {}, "date": "2026-01-01", "search": "quick",
            "quick": True, "budget_s": 4.0, "ceilings": {"bytes_per_s": 1.0, "flops_per_s": {}}, "cases": rows,
        }  # fmt: skip

    joined = merge.merged([shard("features-128", "features-8"), shard("features-16")])
    assert [row["name"] for row in joined["cases"]] == ["features-8", "features-16", "features-128"]
    assert joined["summary"]["cases"] == 3 and joined["geomean_speedup"] == pytest.approx(2.0)
    assert joined["geomean_by_origin"] == {"variation": pytest.approx(2.0)}
    with pytest.raises(ValueError, match="two files"):
        merge.merged([shard("features-8"), shard("features-8")])


def test_cases_that_were_not_measured_again_stand_with_their_own_date() -> None:
    def run(date: str, *names: str) -> dict[str, Any]:
        fields = dict.fromkeys(("benchmark", "chip", "device", "versions", "search", "quick", "seed"))
        plain = {"family": "chains", "origin": "variation", "error": None, "disagreements": {}}
        rows = [plain | {"name": name} for name in names]
        return fields | {
            "date": date,
            "ceilings": {"bytes_per_s": 1.0, "flops_per_s": {}},
            "budget_s": 1,
            "cases": rows,
        }

    earlier = run("2026-01-01", "features-8", "features-16")
    joined = merge.merged([run("2026-02-02", "features-16")], earlier)
    assert [(row["name"], row.get("date")) for row in joined["cases"]] == [
        ("features-8", "2026-01-01"),
        ("features-16", None),
    ]
    again = merge.merged([run("2026-01-01", "features-16")], earlier)
    assert [row.get("date") for row in again["cases"]] == [None, None]
    with pytest.raises(ValueError, match="another"):
        merge.merged([run("2026-02-02", "features-16")], earlier | {"chip": "another"})


def test_merging_takes_the_median_of_what_quick_searches_reached_anew() -> None:
    def shard(name: str, reached: float) -> dict[str, Any]:
        compiles = {kind: {"compile_s": 9.0, "searched": 0} for kind in ("quick", "warm", "full")}
        row = {"name": name, "error": None, "speedups": {"quick": 2.0, "full": 2.0}, "reached": reached} | compiles
        shared = {"chip": "X", "device": "cpu", "versions": {}, "date": "2026-01-01", "quick_s": 20.0, "full_s": 60.0}
        return {"benchmark": "quick-full", "cases": [row], "reached": reached} | shared

    joined = merge.merged([shard("index-add", 0.7), shard("sort-rows", 0.9)])
    assert [row["name"] for row in joined["cases"]] == ["sort-rows", "index-add"]
    assert joined["reached"] == pytest.approx(0.8)
    with pytest.raises(ValueError, match="full_s"):
        merge.merged([shard("index-add", 0.7), shard("sort-rows", 0.9) | {"full_s": 45.0}])


class Uneven(StillClock):
    """What was swapped takes ten microseconds at first and half of one when it is timed again."""

    def medians_us(self, calls: Any, limit_s: float, rounds: tuple[int, int]) -> dict[str, float]:
        return {"eager": 1.0, "kevolve": 10.0 if rounds == (1, 1) else 0.5}


def test_what_was_swapped_and_seems_to_lose_is_timed_once_more() -> None:
    x = torch.zeros(4)
    instance = Instance(lambda x: x, (x,))
    prepared = {name: Prepared(lambda: x, x, replayed=False) for name in ("eager", "kevolve")}
    limits = contenders.Limits(1.0, 0.0, (1, 1))
    for swapped, speedup in ((True, 2.0), (False, 0.1)):
        row = contenders.measured(prepared, instance, Uneven(), Ceilings(1e9), limits, swapped)
        assert row["speedup"] == pytest.approx(speedup)
        assert row.get("measured_again", False) == swapped


def test_regions_of_a_gpu_are_found_without_one() -> None:
    case = next(case for case in CASES if case.name == "projected-interaction")
    found = regions_of(instance_of(case, "cuda"), "cuda")
    assert [one.family.name for one in found] == ["chains"]
    assert {spec.device for spec in found[0].captured.region.inputs} == {"cuda"}


def test_a_sweep_knows_the_kernel_that_ended_its_process() -> None:
    begun = {"region": "r", "digest": "a", "case": "c", "order": 0, "origin": "seed", "schedule": {}, "time_us": None}
    lines = [
        {**begun, "status": "fault"},
        {"region": "r", "digest": "a", "status": "ok", "time_us": 3.0},
        {**begun, "digest": "b", "status": "fault"},
    ]
    rows = sweep.settled([json.dumps(line) for line in lines])
    assert [(row["digest"], row["status"], row["order"]) for row in rows] == [("a", "ok", 0), ("b", "fault", 0)]
    assert "1 fault, 1 ok" in sweep.summary("c", rows, 4)


def test_the_distance_of_results_is_a_part_of_the_largest() -> None:
    expected = torch.tensor([1.0, -4.0, float("inf")])
    assert distance(torch.tensor([1.0, -3.0, 9.0]), expected) == 0.25
    assert distance(torch.tensor([1.0, float("nan"), 9.0]), expected) == float("inf")
    assert distance(torch.tensor([1, 2]), torch.tensor([1, 3])) == 0.5
