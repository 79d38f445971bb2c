"""The sweep over schedules: which regions it sees, and that what fails is a row too."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.cases import Case, Instance
from benchmarks.sweep import in_words, main, regions_of

PASSED = {"registers": 40, "spills": 0, "shared_bytes": 0}


def _training(device: str) -> Instance:
    x, weight = torch.randn(16384, 512, device=device), torch.randn(512, device=device)
    return Instance(lambda x, w: functional.layer_norm(x, (512,), w).sin(), (x, weight), trained=(0, 1))


def test_forward_and_backward_are_different_regions_and_seen_once() -> None:
    found = regions_of(Case("a case", "reductions", "variation", ("cpu",), _training), "cpu")
    assert len(found) == 2 and len({one.captured.region.digest for one in found}) == 2


def test_the_fastest_comes_first_and_failures_are_counted() -> None:
    def row(status: str, **fields: object) -> dict[str, object]:
        return {"schedule": {"rows": len(fields)}, "evaluation": {"status": status, **fields}}

    rows = [
        row("passed", latency_us=20.0, diagnosis=PASSED),
        row("build failed"),
        row("passed", latency_us=10.0, diagnosis=PASSED),
    ]
    (found, *_) = regions_of(Case("a case", "reductions", "variation", ("cpu",), _training), "cpu")
    lines = in_words("a case", found, {"floor_us": 1.0, "baselines_us": {"eager": 30.0}, "rows": rows}).splitlines()
    assert "10.0 us" in lines[1] and "#2" in lines[1] and "20.0 us" in lines[2]
    assert lines[-1].strip() == "others: {'build failed': 1}"


def test_an_unknown_case_is_named(capsys) -> None:
    assert main(["no-such-case"]) == 2
    assert "no-such-case" in capsys.readouterr().err
