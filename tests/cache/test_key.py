from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from kevolve_inductor.cache import cache_key, differences, key
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec
from kevolve_inductor.platforms.platform import Target
from kevolve_inductor.settings import Settings

SPEC = TensorSpec((4, 8), (8, 1), "float32", "cpu")
TARGET = Target("cpu", "Some CPU", ("avx2", "avx512f"), 2, 2, 1 << 20, 0, {"g++": "13.2", "torch": "2.13"})


def region(spec=SPEC, target="aten.relu.default", args=({"node": "i0"},), symbols=()):
    return Region((spec,), (RegionNode(target, args, {}, (spec,)),), ("n0",), symbols)


def digest(region_=None, sizes=None, target=TARGET, settings=None, **rest):
    return cache_key(region_ or region(), sizes or {}, target, settings or Settings(), **rest).digest


def test_equal_work_has_equal_keys():
    assert digest() == digest()
    assert digest() == digest(settings=Settings(store="/elsewhere", seed=9, search="full", report="/r"))
    assert digest() == digest(target=replace(TARGET, features=("avx512f", "avx2")))


@pytest.mark.parametrize(
    "changed",
    [
        {"region_": region(replace(SPEC, shape=(4, 9)))},
        {"region_": region(replace(SPEC, stride=(1, 4)))},
        {"region_": region(replace(SPEC, dtype="float16"))},
        {"region_": region(replace(SPEC, device="cuda"))},
        {"region_": region(target="aten.exp.default")},
        {"region_": region(args=({"node": "i0"}, 1))},
        {"target": replace(TARGET, platform="null")},
        {"target": replace(TARGET, chip="Other CPU")},
        {"target": replace(TARGET, features=("avx2",))},
        {"target": replace(TARGET, threads=4)},
        {"target": replace(TARGET, units=4)},
        {"target": replace(TARGET, shared_bytes=1)},
        {"target": replace(TARGET, warp_size=32)},
        {"target": replace(TARGET, toolchain={"g++": "14.1", "torch": "2.13"})},
        {"settings": Settings(numerics="eager_tf32")},
        {"alignment_bytes": 4},
    ],
    ids=lambda changed: str(changed)[:60],
)
def test_every_field_flipped_is_a_miss(changed):
    assert digest(**changed) != digest()


@pytest.mark.parametrize("name", ["KEY_SCHEMA", "KERNEL_SCHEMA"])
def test_every_schema_raised_is_a_miss(name, monkeypatch):
    before = digest()
    monkeypatch.setattr(key, name, 99)
    assert digest() != before


def test_another_torch_is_a_miss(monkeypatch):
    before = digest()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert digest() != before


def test_switches_that_change_eager_are_a_miss():
    before = digest()
    torch.use_deterministic_algorithms(True)
    try:
        assert digest() != before
    finally:
        torch.use_deterministic_algorithms(False)
    assert digest() == before
    torch.set_float32_matmul_precision("high")
    try:
        assert digest() != before
    finally:
        torch.set_float32_matmul_precision("highest")
    # Set explicitly to the default is the same as never set.
    assert digest() == before


def test_symbolic_sizes_count_by_power_of_two():
    dynamic = region(replace(SPEC, shape=("s0", 8)), symbols=(("s0", 0, 0),))
    keys = {size: digest(dynamic, {"s0": size}) for size in (0, 1, 2, 3, 4, 5, 8, 9)}
    assert keys[3] == keys[4]
    assert keys[5] == keys[8]
    assert len(set(keys.values())) == 6
    assert digest(dynamic, {"s0": 4, "unrelated": 7}) == keys[4]
    with pytest.raises(ValueError, match="s0"):
        digest(dynamic)


def test_differences_explain_a_miss():
    mine = cache_key(region(), {}, TARGET, Settings())
    other = cache_key(region(), {}, replace(TARGET, threads=8, toolchain={}), Settings(numerics="eager_tf32"))
    stored = json.loads(json.dumps(mine.fields))
    assert differences(mine.fields, stored) == {}
    found = differences(other.fields, stored)
    assert found == {
        "numerics.setting": ("eager_tf32", "strict"),
        "target.threads": (8, 2),
        "target.toolchain.g++": (None, "13.2"),
        "target.toolchain.torch": (None, "2.13"),
    }


CODE = """
from kevolve_inductor.cache import cache_key
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec
from kevolve_inductor.platforms.platform import Target
from kevolve_inductor.settings import Settings
spec = TensorSpec((4, 8), (8, 1), "float32", "cpu")
region = Region((spec,), (RegionNode("aten.relu.default", ({"node": "i0"},), {}, (spec,)),), ("n0",))
target = Target("cpu", "Some CPU", ("avx2", "avx512f"), 2, 2, 1 << 20, 0, {"torch": "2.13", "g++": "13.2"})
print(cache_key(region, {}, target, Settings()).digest)
"""


def test_keys_are_equal_in_any_process(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": os.pathsep.join(sys.path), "RANK": "3"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert printed == digest()
