from __future__ import annotations

import pytest
import torch

from kevolve_inductor.evaluate.overflow import index_overflow
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.synthesis.families.features import FeaturesFamily
from kevolve_inductor.synthesis.families.interaction import InteractionFamily
from kevolve_inductor.synthesis.families.rows import RowFamily
from kevolve_inductor.synthesis.families.scans import ScansFamily
from tests.synthesis.family_checks import CUDA, find, kernel_of

IN_OUT = (Argument("input", 0), Argument("output", 0))


def kernel(body: str, grid: str = "1000000", more: str = "", arguments: tuple[Argument, ...] = IN_OUT) -> Kernel:
    names = ", ".join(["x", "out", "n"][: len(arguments)])
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    source = f"{more}\n@triton.jit\ndef run({names}, BLOCK: tl.constexpr):\n{lines}\n"
    return Kernel("triton", source, (Launch("run", arguments, (grid,), (("BLOCK", 1024),)),))


STORE = "tl.store(out + at, tl.load(x + at))"

WRAPS = {
    "a program's place": f"at = tl.program_id(0) * 4096 + tl.arange(0, BLOCK)\n{STORE}",
    "a row's start": f"row = tl.program_id(0)\nat = row * (3 * BLOCK) + tl.arange(0, BLOCK)\n{STORE}",
    "a sum alone": f"start = tl.program_id(0) * 2000\nat = start + tl.arange(0, BLOCK) + 200000000\n{STORE}",
    "widened too late": f"at = (tl.program_id(0) * 4096).to(tl.int64) + tl.arange(0, BLOCK)\n{STORE}",
    "in a loop": f"for k in range(0, 5000):\n    at = k * 1000000 + tl.arange(0, BLOCK)\n    {STORE}",
    "grown in a loop": f"at = tl.arange(0, BLOCK)\nfor k in range(0, 3000):\n    {STORE}\n    at += 1000000",
    "in one branch": f"at = tl.arange(0, BLOCK)\nif BLOCK > 8:\n    at = at * 4000000\n{STORE}",
    "in a function": f"at = place(tl.program_id(0), tl.arange(0, BLOCK))\n{STORE}",
    "narrowed": f"at = (tl.program_id(0).to(tl.int64) * 9).to(tl.int32) * 1024 + tl.arange(0, BLOCK)\n{STORE}",
    "in an argument": "tl.store(out + tl.program_id(0) * 4096, 1.0)",
    "behind a mask": "at = tl.program_id(0) * 4096 + tl.arange(0, BLOCK)\ntl.store(out + at, 0.0, mask=at < 2000000000)",
}  # fmt: skip

FITS = {
    "in 32 bits": f"at = tl.program_id(0) * 1024 + tl.arange(0, BLOCK)\n{STORE}",
    "in 64 bits": f"at = tl.program_id(0).to(tl.int64) * 4096 + tl.arange(0, BLOCK)\n{STORE}",
    "folded back": f"at = (tl.program_id(0) % 1000) * 4096 + tl.arange(0, BLOCK)\n{STORE}",
    "divided": f"at = (tl.program_id(0) // 100) * 4096 + tl.arange(0, BLOCK)\n{STORE}",
    "cut off": f"at = tl.minimum(tl.program_id(0), 99) * 4096 + tl.arange(0, BLOCK)\n{STORE}",
    "constants": f"far: tl.constexpr = BLOCK * BLOCK * BLOCK * 8\nat = tl.arange(0, BLOCK) + far // BLOCK // BLOCK\n{STORE}",
    "loaded, which nobody knows": "at = tl.load(x + tl.arange(0, BLOCK)) * 2654435761\ntl.store(out + tl.arange(0, BLOCK), at)",
}  # fmt: skip

HELPER = "@triton.jit\ndef place(row, column):\n    return row * 4096 + column\n"


@pytest.mark.parametrize("name", WRAPS)
def test_a_place_that_leaves_32_bits_is_found(name):
    refused = index_overflow(kernel(WRAPS[name], more=HELPER), ())
    assert refused is not None and refused.check == "index overflow"
    assert refused.message.startswith("line ")


@pytest.mark.parametrize("name", FITS)
def test_a_place_that_fits_is_left_alone(name):
    assert index_overflow(kernel(FITS[name]), ()) is None


def test_a_size_that_is_not_known_may_be_large():
    sized = (*IN_OUT, Argument("size", 0))
    narrow, wide = (f"at = tl.program_id(0){cast} * n + tl.arange(0, BLOCK)\n{STORE}" for cast in ("", ".to(tl.int64)"))
    assert index_overflow(kernel(narrow, "s0", arguments=sized), ("s0",)) is not None
    assert index_overflow(kernel(wide, "s0", arguments=sized), ("s0",)) is None


def test_kernels_of_tensors_beyond_32_bits_count_in_64():
    # Allocated, never touched.
    large = torch.empty(2**24 + 8, 130, dtype=torch.bfloat16)
    far = torch.empty(2**31 + 2**12, dtype=torch.int8).as_strided((2**12, 64), (2**19, 1))
    for family, function, value in (
        (RowFamily(), lambda x: torch.topk(torch.softmax(x, -1), 2), large),
        (ScansFamily(), lambda x: x.cumsum(1), large),
        (ScansFamily(), lambda x: x.to(torch.float32).cumsum(0), far),
        (ScansFamily(), lambda x: x.to(torch.float32).cummax(1).values, far.T),
        (RowFamily(), lambda x: x.argmax(1), far),
        (RowFamily(), lambda x: x.argmax(1), far.T),
        (FeaturesFamily(), lambda x: torch.bucketize(x, torch.arange(100)), far),
        (InteractionFamily(), lambda x: torch.bmm(x, x.mT)[:, *torch.tril_indices(9, 9)], torch.empty(2**17, 9, 2048)),
    ):
        match = find(family, function, [value]).match
        emitted = kernel_of(family, match, family.space(match, CUDA).default, "triton")
        assert index_overflow(emitted, ()) is None
        assert "int64" in emitted.source
