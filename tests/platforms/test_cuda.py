from __future__ import annotations

import pytest
import torch

from kevolve_inductor.exc import PlatformError
from kevolve_inductor.platforms import executor_for
from kevolve_inductor.platforms.cuda import CudaPlatform


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_the_reason_is_given():
    reason = CudaPlatform().available()
    assert reason
    with pytest.raises(PlatformError, match=reason):
        CudaPlatform().target()
    with pytest.raises(PlatformError, match=reason):
        CudaPlatform().ceilings()


@pytest.mark.gpu
def test_target_and_ceilings():
    target = CudaPlatform().target()
    assert target.features[0].startswith("sm_")
    assert target.units > 0 and target.shared_bytes >= 48 * 1024
    assert set(target.toolchain) == {"torch", "triton", "cuda", "driver"}
    ceilings = CudaPlatform().ceilings()
    assert ceilings.bytes_per_s > 1e11
    assert ceilings.flops_per_s["bfloat16"] > ceilings.flops_per_s["float32"] > 1e12
    assert 1e-7 < ceilings.launch_s < 1e-4
    assert ceilings.bytes_per_s < executor_for("cuda").bus_bytes_per_s() < 2 * ceilings.bytes_per_s
