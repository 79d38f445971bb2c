from __future__ import annotations

import inspect
import linecache
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kevolve_inductor.exc import BuildError, ResourceError
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms.hip import HipPlatform
from kevolve_inductor.platforms.triton_build import compile_for, load_triton

pytest.importorskip("triton")
HERE = str(Path(__file__).parent)

SOURCE = """
@triton.jit
def scaled(value, factor):
    return value * factor

@triton.jit
def row_sum(x, out, n, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * WIDTH + at, mask=at < WIDTH, other=0.0)
    tl.store(out + row, scaled(tl.sum(value, 0), 2.0), mask=row < n)
"""


def region():
    matrix = TensorSpec(("s0", 100), (100, 1), "float32", "cuda")
    out = TensorSpec(("s0",), (1,), "float32", "cuda")
    node = RegionNode("aten.sum.dim_IntList", ({"node": "i0"}, [1]), {}, (out,))
    return Region((matrix,), (node,), ("n0",), (("s0", 0, 0),))


def kernel(source=SOURCE, constants=(("WIDTH", 100), ("BLOCK", 128)), function="row_sum"):
    arguments = (Argument("input", 0), Argument("output", 0), Argument("size", 0))
    return Kernel("triton", source, (Launch(function, arguments, ("s0",), constants),))


@pytest.mark.parametrize("target", ["sm_90", "gfx942", "gfx950"])
def test_compiles_without_a_gpu(target, tmp_path):
    resources = compile_for(kernel(), region(), target, tmp_path)
    assert 0 < resources.registers <= 512
    assert resources.spills == 0
    assert 0 <= resources.shared_bytes < 4096


PRODUCT = """
@triton.jit
def product(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for step in range(0, 64):
        left = tl.load(x + at[:, None] * SIZE + at[None, :] + step)
        right = tl.load(x + at[None, :] * SIZE + at[:, None] + step)
        total += tl.dot(left, right)
    tl.store(out + at[:, None] * SIZE + at[None, :], total)
"""


@pytest.mark.parametrize(("target", "limit"), [("sm_90", 227), ("gfx942", 64)])
def test_shared_memory_beyond_the_target_is_noticed(target, limit, tmp_path):
    matrix = TensorSpec((128, 128), (128, 1), "float32", "cuda")
    node = RegionNode("aten.mm.default", ({"node": "i0"}, {"node": "i0"}), {}, (matrix,))
    launch = Launch(
        "product", (Argument("input", 0), Argument("output", 0)), ("1",), (("SIZE", 128),), num_warps=8, num_stages=5
    )
    big = Kernel("triton", PRODUCT, (launch,))
    with pytest.raises(ResourceError) as caught:
        compile_for(big, Region((matrix,), (node,), ("n0",)), target, tmp_path)
    assert caught.value.resource == "shared memory"
    assert caught.value.needed > caught.value.available == limit * 1024


def test_a_compile_error_names_the_line_of_the_kernel(tmp_path):
    broken = SOURCE.replace("tl.sum(value, 0), 2.0", "tl.sum(value, 0) + tl.zeros([3], tl.float32), 2.0")
    line = next(k for k, text in enumerate(broken.splitlines(), 1) if "zeros" in text)
    with pytest.raises(BuildError) as caught:
        compile_for(kernel(broken), region(), "sm_90", tmp_path)
    assert caught.value.line == line


def test_launches_that_do_not_fit_the_source_are_not_built(tmp_path):
    with pytest.raises(BuildError, match="no function"):
        load_triton(kernel(function="column_sum"), tmp_path)
    with pytest.raises(BuildError, match="parameters"):
        compile_for(kernel(constants=(("WIDTH", 100),)), region(), "sm_90", tmp_path)
    with pytest.raises(BuildError, match="no constant"):
        compile_for(kernel(constants=(("WIDTH", 100), ("TILE", 128))), region(), "sm_90", tmp_path)


def test_the_source_of_a_loaded_kernel_outlives_its_file(tmp_path):
    text = SOURCE + "\n# in a store that is deleted\n"
    function = load_triton(kernel(text), tmp_path / "first")[0]
    before = inspect.getsource(function.fn)
    shutil.rmtree(tmp_path / "first")
    linecache.checkcache()
    assert load_triton(kernel(text), tmp_path / "second")[0] is function
    assert inspect.getsource(function.fn) == before


def test_a_changed_source_file_is_written_again(tmp_path):
    function = load_triton(kernel(SOURCE + "\n# once\n"), tmp_path)[0]
    (path,) = tmp_path.rglob("*.py")
    assert function.fn.__code__.co_filename == str(path)
    text = path.read_text()
    path.write_text(text + "raise RuntimeError\n")
    code = (
        f"import sys, pathlib; sys.path.insert(0, {HERE!r})\n"
        "import test_triton_build as t\n"
        "t.load_triton(t.kernel(t.SOURCE + '\\n# once\\n'), pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.read_text() == text


INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import test_triton_build as t
from kevolve_inductor.kernel import Argument, Kernel, Launch, Workspace
from kevolve_inductor.platforms.cuda import launch

x = torch.randn(7, 100)
out = torch.full((7,), -1.0)
launch(t.kernel(), [x], [out], {"s0": 7})
torch.testing.assert_close(out, 2 * x.sum(1))

source = t.SOURCE + '''
@triton.jit
def halved(x, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) * 0.5, mask=at < n)
'''
first = Launch("row_sum", (Argument("input", 0), Argument("workspace", 0), Argument("size", 0)), ("s0",),
               (("WIDTH", 100), ("BLOCK", 128)))
second = Launch("halved", (Argument("workspace", 0), Argument("output", 0), Argument("size", 0)), ("cdiv(s0, 8)",),
                (("BLOCK", 8),))
two = Kernel("triton", source, (first, second), (Workspace("float32", "2*s0", True),))
launch(two, [x], [out], {"s0": 7})
torch.testing.assert_close(out, x.sum(1))
launch(two, [x[:0]], [out[:0]], {"s0": 0})
print("done")
"""


def test_launches_run_in_the_interpreter(store):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, HERE], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.strip() == "done", done.stderr


def test_hip_says_that_it_only_compiles():
    platform = HipPlatform("gfx950")
    assert "compiled" in platform.available()
    assert platform.target().shared_bytes == 160 * 1024
