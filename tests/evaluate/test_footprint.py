"""What judging a region is said to need beside what it takes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kevolve_inductor.evaluate.closeness import compare
from kevolve_inductor.evaluate.footprint import most_workspace_bytes, needed_bytes
from kevolve_inductor.graph import blocks
from kevolve_inductor.graph.blocks import row_blocks
from kevolve_inductor.graph.reference import evaluate_fp64
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec

ROWS, COLUMNS = 64, 1000


class LivingBytes(TorchDispatchMode):
    """Counts the memory of all tensors that operators return while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self.living:
            self.living[place] = storage.nbytes()
            weakref.finalize(storage, self.living.pop, place)
            self.peak = max(self.peak, sum(self.living.values()))


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    stride = tuple(int(torch.tensor(shape[k + 1 :]).prod()) for k in range(len(shape)))
    return TensorSpec(shape, stride, dtype, "cpu")


def gradient_of_cross_entropy() -> Region:
    whole, row = spec(ROWS, COLUMNS), spec(ROWS, 1)
    node = lambda name: {"node": name}  # noqa: E731
    nodes = (
        RegionNode("aten.sub.Tensor", (node("i0"), node("i1")), {}, (whole,)),
        RegionNode("aten.exp.default", (node("n0"),), {}, (whole,)),
        RegionNode("aten.sum.dim_IntList", (node("n1"), [1], True), {}, (row,)),
        RegionNode("aten.view.default", (node("n1"), [ROWS, COLUMNS]), {}, (whole,)),
        RegionNode("aten.div.Tensor", (node("n3"), node("n2")), {}, (whole,)),
        RegionNode("aten.sub.Tensor", (node("n4"), node("i0")), {}, (whole,)),
    )
    return Region((whole, row), nodes, ("n5",))


def inputs() -> Sequence[torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(ROWS, COLUMNS), torch.randn(ROWS, 1)


def test_the_reference_takes_what_it_is_said_to_need() -> None:
    region, given = gradient_of_cross_entropy(), inputs()
    with LivingBytes() as seen:
        reference = evaluate_fp64(region, given)
        output = reference.eager[0].clone()
        assert not compare(output, reference.exact[0], reference.eager[0], False).wrong.any()
    held = seen.peak + sum(tensor.nbytes for tensor in given)
    assert held <= needed_bytes(region, {}) < 3 * held


def test_a_quarter_of_what_is_moved_may_stand_beside_it() -> None:
    region = gradient_of_cross_entropy()
    moved = 4 * (2 * ROWS * COLUMNS + ROWS)
    assert most_workspace_bytes(region, {}) == max(moved // 4, 2**20)
    (whole, row) = (replace(spec, shape=(1000 * spec.shape[0], *spec.shape[1:])) for spec in region.inputs)
    assert most_workspace_bytes(replace(region, inputs=(whole, row)), {}) > 100 * moved


def test_either_precision_is_done_before_the_other() -> None:
    with LivingBytes() as seen:
        evaluate_fp64(gradient_of_cross_entropy(), inputs())
    assert seen.peak < (4 * 8 + 4) * ROWS * COLUMNS


def test_blocks_are_whole_rows_and_cover_everything_once() -> None:
    for shape in ((), (7,), (5, 3), (2, 9, 4), (9, 2, 4), (1, 40)):
        counts = torch.zeros(shape)
        for at in row_blocks(shape, 8):
            counts[at] += 1
            assert counts[at].shape[-1:] == counts.shape[-1:]
        assert bool((counts == 1).all())
    assert len(list(row_blocks((9, 2, 4), 8))) == 9


def test_comparing_in_blocks_changes_no_verdict(monkeypatch: Any) -> None:
    torch.manual_seed(0)
    exact = torch.randn(40, 3, 50, dtype=torch.float64) * torch.logspace(-3, 3, 40, dtype=torch.float64)[:, None, None]
    exact[3, 1, 7], exact[5, 0, 2], exact[6, 2, 0] = float("nan"), float("inf"), 70000.0
    eager = (exact * (1 + 1e-4 * torch.randn_like(exact))).half()
    output = (exact * (1 + 3e-4 * torch.randn_like(exact))).half()
    output[9], output[10, 1, 3], output[11, 0, 0] = 2 * output[9], float("nan"), float("inf")
    for bitwise in (False, True):
        whole = compare(output, exact, eager, bitwise)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "CACHED_ELEMENTS", 400)
            parts = compare(output, exact, eager, bitwise)
        assert torch.equal(whole.wrong, parts.wrong) and 0 < int(whole.wrong.sum()) < whole.wrong.numel()
        assert whole.error is not None and parts.error is not None and torch.equal(whole.error, parts.error)
        assert (whole.pattern, whole.by_rounding) == (parts.pattern, parts.by_rounding)
        assert abs(whole.allowed_norm - parts.allowed_norm) <= 1e-9 * whole.allowed_norm
