from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kevolve_inductor import settings
from kevolve_inductor.exc import BuildError, CompilerMissingError, GateError, KernelIndexError
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec
from kevolve_inductor.kernel import Argument, Kernel, Launch, Workspace
from kevolve_inductor.platforms import platform_for, use_build_folder
from kevolve_inductor.platforms.cpp_compiler import find_compiler
from kevolve_inductor.platforms.cpu import CpuPlatform, compile_cpp, generate_cpp, load_cpp
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE, row_sum_kernel, row_sum_region


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


def inputs_and_output():
    x = torch.randn(500, 100)
    return x, torch.empty(500)


def test_target_is_concrete():
    target = CpuPlatform().target()
    assert target.platform == "cpu"
    assert target.threads == torch.get_num_threads()
    assert target.chip and target.features and target.shared_bytes > 2**14
    assert list(target.features) == sorted(set(target.features))
    assert "native" not in str(target.to_json())
    assert target.toolchain["torch"] == torch.__version__


def test_flags_name_the_instruction_set_and_keep_ieee_arithmetic():
    flags = find_compiler().flags
    assert not [flag for flag in flags if "native" in flag or "fast-math" in flag]
    assert [flag for flag in flags if flag.startswith(("-march=", "-mcpu="))]


def test_ceilings_are_plausible():
    ceilings = CpuPlatform().ceilings()
    assert 1e8 < ceilings.bytes_per_s < 1e13
    assert 1e8 < ceilings.flops_per_s["float32"] < 1e15
    assert 0 < ceilings.launch_s < 1


def test_a_kernel_computes(folder):
    built = CpuPlatform().build(row_sum_kernel(), row_sum_region(), folder)
    x, out = inputs_and_output()
    built.call(x, out)
    torch.testing.assert_close(out, x.sum(1))
    assert built.text == generate_cpp(row_sum_kernel(), row_sum_region())


def test_kernels_share_torchs_threads(folder):
    CpuPlatform().build(row_sum_kernel(), row_sum_region(), folder).call(*inputs_and_output())
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line or "libiomp" in line}
    assert len(runtimes) == 1


def test_wrong_arguments_raise(folder):
    call = CpuPlatform().build(row_sum_kernel(), row_sum_region(), folder).call
    x, out = inputs_and_output()
    with pytest.raises(TypeError):
        call(x)
    with pytest.raises(TypeError):
        call(x, 3)
    with pytest.raises(TypeError):
        call(x, out, out)


def test_a_status_becomes_an_index_error(folder):
    kernel = row_sum_kernel(ROW_SUM_SOURCE.replace("return 0", "return 1"))
    call = CpuPlatform().build(kernel, row_sum_region(), folder).call
    with pytest.raises(KernelIndexError):
        call(*inputs_and_output())
    with pytest.raises(IndexError):
        call(*inputs_and_output())


SYMBOLIC_SOURCE = """
extern "C" int64_t count(const int32_t* __restrict in, int64_t* __restrict counts, int64_t n) {
  for (int64_t k = 0; k < n; k++) counts[in[k]] += 1;
  return 0;
}
extern "C" int64_t spread(const int64_t* __restrict counts, int64_t* __restrict out, int64_t n) {
  for (int64_t k = 0; k < n; k++) out[k] = counts[k] + counts[n + k];
  return 0;
}
"""


def symbolic_kernel(zeroed=True, numel="max(2*n, cdiv(n, 4))"):
    launches = (
        Launch("count", (Argument("input", 0), Argument("workspace", 0), Argument("size", 0))),
        Launch("spread", (Argument("workspace", 0), Argument("output", 0), Argument("size", 0))),
    )
    return Kernel("cpp", SYMBOLIC_SOURCE, launches, (Workspace("int64", numel, zeroed),))


def symbolic_region():
    vector = TensorSpec(("n",), (1,), "int32", "cpu")
    out = TensorSpec(("n",), (1,), "int64", "cpu")
    node = RegionNode("aten.bincount.default", ({"node": "i0"},), {}, (out,))
    return Region((vector,), (node,), ("n0",), (("n", 0, 0),))


def test_launches_run_in_order_over_a_zeroed_workspace(folder):
    call = CpuPlatform().build(symbolic_kernel(), symbolic_region(), folder).call
    for size in (5, 1, 300):
        x = torch.randint(size, (size,), dtype=torch.int32)
        out = torch.empty(size, dtype=torch.int64)
        call(x, out, size)
        assert torch.equal(out, torch.bincount(x, minlength=size))


@pytest.mark.parametrize("numel", ["n**2", "m", "n +", "__import__('os')", "pow(n, 2)"])
def test_sizes_outside_the_grammar_are_not_built(numel):
    with pytest.raises(BuildError):
        generate_cpp(symbolic_kernel(numel=numel), symbolic_region())


def test_an_argument_that_does_not_exist_is_not_built():
    kernel = Kernel("cpp", ROW_SUM_SOURCE, (Launch("row_sum", (Argument("input", 0), Argument("output", 1))),))
    with pytest.raises(BuildError, match="output 1"):
        generate_cpp(kernel, row_sum_region())


def test_a_compile_error_names_the_line_of_the_kernel(folder):
    broken = ROW_SUM_SOURCE.replace("float sum = 0;", "float sum = zero;")
    line = broken.splitlines().index("    float sum = zero;") + 1
    with pytest.raises(BuildError) as caught:
        CpuPlatform().build(row_sum_kernel(broken), row_sum_region(), folder)
    assert caught.value.stage == "compile"
    assert caught.value.line == line
    assert "zero" in caught.value.message


def test_what_is_built_is_found_again_and_rebuilt_where_it_was_changed(tmp_path):
    text = generate_cpp(row_sum_kernel(), row_sum_region())
    path = compile_cpp(text, tmp_path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert compile_cpp(text, tmp_path) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    path.write_bytes(before[0][:-8] + b"\0" * 8)
    assert compile_cpp(text, tmp_path) == path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(".sha256").read_text()


def test_an_object_may_import_arithmetic_only(tmp_path):
    smuggled = ROW_SUM_SOURCE.replace("return 0;", "auto run = [](auto f) { return f(); }; return run(getpid) == 0;")
    smuggled = '#include <algorithm>\nextern "C" int getpid();\n' + smuggled
    with pytest.raises(GateError, match="getpid"):
        CpuPlatform().build(row_sum_kernel(smuggled), row_sum_region(), tmp_path)


def test_no_compiler_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "compiler_candidates", lambda: ("no-such-compiler",))
    assert "no-such-compiler" in CpuPlatform().available()
    with pytest.raises(CompilerMissingError, match="no-such-compiler"):
        compile_cpp("int x;", tmp_path)


def test_another_process_loads_the_same_text_from_the_store(store, tmp_path):
    use_build_folder(None)
    text = tmp_path / "kernel.cpp"
    text.write_text(generate_cpp(row_sum_kernel(), row_sum_region()) + "// built by this test alone")
    load_cpp(text.read_text())
    built = sorted((store / "build" / "cpp").rglob("*.so"))
    assert len(built) == 1
    code = (
        "import sys, torch; from kevolve_inductor.platforms.cpu import load_cpp\n"
        "x = torch.arange(50000.).reshape(500, 100); out = torch.empty(500)\n"
        "load_cpp(open(sys.argv[1]).read())(x, out); print(torch.equal(out, x.sum(1)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(text)], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.stdout.strip() == "True", done.stderr
    assert sorted((store / "build" / "cpp").rglob("*.so")) == built


def test_what_a_workers_allocator_keeps_is_given_back():
    code = (
        "import re, torch; from kevolve_inductor.platforms.cpu import CpuPlatform\n"
        "def held(): return int(re.search(r'RssAnon:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "large, above = torch.ones(2**25), torch.ones(2**12); before = held(); del large; kept = held()\n"
        "CpuPlatform().release_unused(); print(before - kept, before - held())"
    )
    environment = settings.worker_environment()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    kept_kib, given_kib = map(int, done.stdout.split())
    assert kept_kib < 2**10 and given_kib > 0.9 * 2**17, done.stderr


def test_unknown_platforms_are_named():
    with pytest.raises(Exception, match="cpu, cuda, hip, null"):
        platform_for("abacus")
