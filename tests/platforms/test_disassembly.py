from __future__ import annotations

import shutil

import pytest

from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.disassembly import profile_of_text, read_machine_code
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE, row_sum_kernel, row_sum_region

TEXT = """
    1000:\tsub    $0x48,%rsp
    1004:\tvaddps (%rcx),%zmm2,%zmm0
    100a:\tvfmadd231ps %zmm1,%zmm2,%zmm0
    1010:\tvaddsd %xmm1,%xmm0,%xmm0
    1014:\tvmulpd %ymm1,%ymm0,%ymm0
    1018:\tvmovaps %zmm0,0x40(%rsp)
    101c:\tvmovaps 0x40(%rsp),%zmm0
    1020:\tvxorps %xmm2,%xmm2,%xmm2
    1024:\taddss  -0x10(%rcx),%xmm0
    1028:\tsub    $0x8,%rsp
"""


def test_work_in_vectors_is_counted_by_elements():
    profile = profile_of_text(TEXT)
    assert (profile.vector_bits, profile.stack_bytes, profile.stack_stores) == (512, 0x48, 1)
    assert profile.vector_share == pytest.approx((16 + 16 + 4) / (16 + 16 + 4 + 2))


def test_code_without_floating_point_says_nothing_about_vectors():
    profile = profile_of_text("    1000:\tadd    $0x1,%rax\n")
    assert profile.vector_bits is None and profile.vector_share is None
    assert profile_of_text("    1000:\taddss  %xmm1,%xmm0\n").vector_bits == 0


def test_of_two_kernels_the_vectorised_one_is_told(tmp_path):
    if CpuPlatform().available() is not None:
        pytest.skip("no compiler")
    chained = ROW_SUM_SOURCE.replace("#pragma omp simd reduction(+ : sum)", "").replace(
        "sum += in", "sum = sum * sum + in"
    )
    shares = [
        read_machine_code(CpuPlatform().build(row_sum_kernel(source), row_sum_region(), tmp_path).path)
        for source in (ROW_SUM_SOURCE, chained)
    ]
    if not shares[0].sources:
        assert shares[0].missing
        pytest.skip(str(shares[0].missing))
    assert shares[0].vector_share > 0.5 > shares[1].vector_share


def test_without_the_tool_the_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert read_machine_code(tmp_path / "none.so").missing == {"disassembly": "objdump is not installed"}
