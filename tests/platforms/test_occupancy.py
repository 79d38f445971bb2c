from __future__ import annotations

import pytest

from kevolve_inductor.platforms.occupancy import LIMITS, occupancy_of
from kevolve_inductor.platforms.triton_build import SHARED_LIMITS


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "share", "blocks", "limit"),
    [
        # From the CUDA occupancy calculator's tables: 256 threads with 40 registers, 128 with 168, 32 with few.
        ("sm_90", 8, 40, 0, 0.75, 6, "registers"),
        ("sm_80", 4, 168, 0, 0.1875, 3, "registers"),
        ("sm_90", 1, 16, 0, 0.5, 32, "blocks"),
        ("sm_86", 1, 16, 0, 1 / 3, 16, "blocks"),
        ("sm_90", 8, 32, 0, 1.0, 8, "warps"),
        # 100 KiB and the reserved KiB fit twice into 228.
        ("sm_90", 4, 32, 100 * 1024, 0.125, 2, "shared memory"),
        ("gfx942", 4, 128, 0, 0.5, 4, "registers"),
        ("gfx942", 4, 64, 40 * 1024, 0.125, 1, "shared memory"),
        ("sm_90", 8, None, None, 1.0, 8, "warps"),
    ],
)
def test_theoretical_occupancy(target, warps, registers, shared, share, blocks, limit):
    found = occupancy_of(target, warps, registers, shared)
    assert (found.share, found.blocks, found.limit) == (pytest.approx(share), blocks, limit)


def test_an_unknown_target_has_none_and_every_known_one_holds_its_largest_block():
    assert occupancy_of("sm_61", 4, 32, 0) is None
    for target, largest in SHARED_LIMITS.items():
        assert target in LIMITS
        assert occupancy_of(target, 4, 32, largest).blocks == 1
