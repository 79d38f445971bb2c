"""What a run tells about a wrong kernel before any reference is asked."""

from __future__ import annotations

import pytest
import torch

from kevolve_inductor.evaluate.evaluation import Mismatch
from kevolve_inductor.evaluate.guarded import Suspect
from kevolve_inductor.evaluate.inputs import generate
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.cpu_executor import CpuExecutor
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE, row_sum_kernel, row_sum_region, row_sum_workload

END = "  return 0;\n}"

pytestmark = pytest.mark.skipif(CpuPlatform().available() is not None, reason="no compiler")


@pytest.mark.parametrize(
    ("old", "new", "pattern", "place", "cause"),
    [
        ("row < 500", "row < 490", "unwritten", "elements from 490 on, of 500", "never stored"),
        (
            "out[row] = sum",
            "if (row % 4) out[row] = sum",
            "unwritten",
            "one of every 4 elements, from 0 on",
            "never stored",
        ),
        ("out[row] = sum", "out[row] += sum", "not repeatable", "all elements", "never written"),
        (END, "  out[500] = 0;\n" + END, "out of bounds write", None, "wrong bound"),
        (END, "  const_cast<float*>(in)[7] += 1;\n" + END, "input changed", None, "an input's memory"),
    ],
)
def test_where_and_why(tmp_path, old, new, pattern, place, cause):
    executor, region, workload = CpuExecutor(), row_sum_region(), row_sum_workload()
    compiled = executor.load(row_sum_kernel(ROW_SUM_SOURCE.replace(old, new)), region, tmp_path)
    inputs = generate(region, workload, "ties", 0, torch.device("cpu"))
    mismatch = Suspect(compiled, (), region, {}, executor).run(inputs, "ties")
    assert isinstance(mismatch, Mismatch)
    assert (mismatch.pattern, mismatch.place) == (pattern, place)
    assert cause in mismatch.likely_cause
