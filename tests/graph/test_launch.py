"""The operator that stands in graphs keeps what torch asks of operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kevolve_inductor.exc import CompilerMissingError, SwapError
from kevolve_inductor.graph.launch import Program, register_program
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms.cpp_compiler import find_compiler
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE, row_sum_kernel, row_sum_region


def sized() -> Program:
    matrix, row = TensorSpec(("s0", 100), (100, 1), "float32", "cpu"), TensorSpec(("s0",), (1,), "float32", "cpu")
    node = RegionNode("aten.sum.dim_IntList", ({"node": "i0"}, [1]), {}, (row,))
    source = ROW_SUM_SOURCE.replace("float* __restrict out)", "float* __restrict out, int64_t s0)").replace(
        "< 500", "< s0"
    )
    arguments = (Argument("input", 0), Argument("output", 0), Argument("size", 0))
    return Program(
        Kernel("cpp", source, (Launch("row_sum", arguments),)), Region((matrix,), (node,), ("n0",), (("s0", 0, 0),))
    )


@pytest.fixture(autouse=True)
def compiler():
    try:
        find_compiler()
    except CompilerMissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("program", "rows"), [(Program(row_sum_kernel(), row_sum_region()), 500), (sized(), 7)], ids=["static", "sized"]
)
def test_the_operator_is_what_torch_expects_of_one(program, rows):
    x = torch.randn(rows, 100)
    arguments = ([x], [rows] if program.region.symbols else [], register_program(program))
    torch.library.opcheck(torch.ops.kevolve.launch.default, arguments)
    (sums,) = torch.ops.kevolve.launch(*arguments)
    torch.testing.assert_close(sums, x.sum(1))


def test_a_program_that_this_process_does_not_know_is_named():
    unknown = replace(sized(), region=row_sum_region()).digest
    with pytest.raises(SwapError, match="compile the model again"):
        torch.ops.kevolve.launch([torch.zeros(500, 100)], [], unknown)
