"""Tensors of more elements than 32 bits can count, for real: the symbolic check says that addresses do not wrap."""

from __future__ import annotations

import pytest
import torch
from family_checks import CUDA, find, kernel_of

from kevolve_inductor.synthesis.families.rows import ReductionFamily

FAMILY = ReductionFamily()
ROWS, COLUMNS = 2**16 + 64, 2**15
# Input, output, and what the compiler's example run holds.
_NEEDED_BYTES = 8 * 2 * ROWS * COLUMNS


@pytest.mark.gpu
def test_rows_behind_the_last_32_bit_address_are_right() -> None:
    from kevolve_inductor.platforms.cuda import launch

    if torch.cuda.mem_get_info()[0] < _NEEDED_BYTES:
        pytest.skip(f"needs {_NEEDED_BYTES / 2**30:.0f} GiB of the device's memory")
    x = torch.randn(ROWS, COLUMNS, dtype=torch.bfloat16, device="cuda")
    assert x.numel() > 2**31
    match = find(FAMILY, lambda x: torch.softmax(x, -1), [x], device="cuda").match
    schedule = FAMILY.space(match, CUDA).default
    out = torch.full_like(x, float("nan"))
    launch(kernel_of(FAMILY, match, schedule, "triton"), [x], [out], {})
    for rows in (slice(0, 2), slice(2**16 - 1, 2**16 + 1), slice(-2, None)):
        torch.testing.assert_close(out[rows], torch.softmax(x[rows], -1), rtol=2e-2, atol=1e-6)
    assert not bool(out.isnan().any())
