"""Operators of libraries: another process knows them once it has imported what defines them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kevolve_inductor.graph.foreign import import_all, modules_of
from kevolve_inductor.graph.reference import resolve_target
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec

DEFINING = """
import torch

@torch.library.custom_op("kevolve_tests::tripled", mutates_args=())
def tripled(x: torch.Tensor) -> torch.Tensor:
    return 3 * x

@tripled.register_fake
def _(x):
    return torch.empty_like(x)
"""
ROWS = TensorSpec((8, 3), (3, 1), "float32", "cpu")
TARGET = "kevolve_tests.tripled.default"


def region(target: str) -> Region:
    nodes = (
        RegionNode("aten.relu.default", ({"node": "i0"},), {}, (ROWS,)),
        RegionNode(target, ({"node": "n0"},), {}, (ROWS,)),
    )
    return Region((ROWS,), nodes, ("n1",), ())


def test_another_process_imports_the_module_that_defines_an_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "operators_of_a_library.py").write_text(DEFINING)
    code = (
        "import sys; from kevolve_inductor.graph.foreign import import_all\n"
        "from kevolve_inductor.graph.reference import resolve_target\n"
        "import_all(sys.argv[1:]); print(resolve_target('kevolve_tests.tripled.default'))"
    )

    def run(*modules: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(__file__).parents[2]}:{tmp_path}"
        return subprocess.run(
            [sys.executable, "-c", code, *modules],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": path},
        )

    assert "unknown operator" in run().stderr
    monkeypatch.syspath_prepend(tmp_path)
    import_all(["operators_of_a_library"])
    assert resolve_target(TARGET)(torch.ones(2)).tolist() == [3.0, 3.0]
    found = modules_of(region(TARGET))
    assert found == ("operators_of_a_library",)
    done = run(*found)
    assert done.stdout.strip() == TARGET, done.stderr


def test_torchs_own_operators_need_nothing_and_what_cannot_be_imported_is_left_out() -> None:
    assert modules_of(region("aten.neg.default")) == ()
    assert modules_of(region("no_such_library.neg.default")) == ()
    import_all(["no_such_module_anywhere"])
