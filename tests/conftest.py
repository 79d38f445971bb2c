"""Every test has a store of its own; the whole run shares one Inductor cache, empty at the start, deleted at the end."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch is first imported by a test: Inductor and Triton read these when they are loaded.
_CACHES = tempfile.TemporaryDirectory(prefix="kevolve-tests-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(_CACHES.name) / "inductor")
os.environ["TRITON_CACHE_DIR"] = str(Path(_CACHES.name) / "triton")
# Two tests run at a time: threads that spin while they wait would take each other's processors.
os.environ["OMP_WAIT_POLICY"] = "passive"
for _name in [name for name in os.environ if name.startswith("KEVOLVE_")]:
    del os.environ[_name]


# A worker that came to one of these last would leave the others without work for minutes.
_FIRST = ("test_quickstart", "test_real_models", "test_mutants", "test_scatter_triton", "test_client", "test_swap_pass")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _FIRST.index(item.path.stem) if item.path.stem in _FIRST else len(_FIRST))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_unconfigure() -> None:
    _CACHES.cleanup()


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that this test alone uses, in this process and in those it starts."""
    path = tmp_path / "store"
    monkeypatch.setenv("KEVOLVE_STORE", str(path))
    return path


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """What one test compiled is not seen by the next."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
