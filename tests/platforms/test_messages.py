"""Real reports of each tool, and what is left of them."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

from kevolve_inductor.exc import BuildError, ResourceError
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms.messages import cpp_error, import_error, stderr_position, stderr_since, triton_error
from kevolve_inductor.platforms.triton_build import compile_for
from kevolve_inductor.testing.evaluators import row_sum_region

GCC = """kernel: In function 'int64_t f(const float*, float*)':
kernel:5:13: error: 'missing' was not declared in this scope
kernel:7:20: error: no matching function for call to 'max(int, float)'
In file included from /usr/include/c++/12/algorithm:60,
                 from kernel:1:
/usr/include/c++/12/bits/stl_algobase.h:254:5: note: candidate: 'template<class T> const T& max(const T&, const T&)'
kernel:7:20: note:   deduced conflicting types for parameter 'const T' ('int' and 'float')
"""
IN_A_HEADER = """In file included from /usr/include/c++/12/algorithm:61,
                 from kernel:1:
/usr/include/c++/12/bits/stl_algo.h: In instantiation of 'void sort(It, It) [with It = int]':
kernel:6:17:   required from here
/usr/include/c++/12/bits/stl_algo.h:1937:9: error: invalid type argument of unary '*' (have 'int')
/usr/include/c++/12/bits/stl_algo.h:1937:9: error: invalid type argument of unary '*' (have 'int')
"""
CLANG = """kernel:3:13: error: use of undeclared identifier 'missing'
    3 |   float a = missing;
      |             ^
/usr/include/c++/12/bits/stl_algo.h:1937:9: error: indirection requires pointer operand
kernel:6:3: note: in instantiation of function template specialization 'std::sort<int>' requested here
fatal error: too many errors emitted, stopping now [-ferror-limit=]
2 errors generated.
"""
LINKER = """/usr/bin/ld: /tmp/kevolve-x1/kernel.o: in function `f':
kernel:(.text+0x9): undefined reference to `frobnicate'
collect2: error: ld returned 1 exit status
"""


@pytest.mark.parametrize(
    ("report", "line", "message"),
    [
        (
            GCC,
            5,
            "'missing' was not declared in this scope\nline 7: no matching function for call to 'max(int, float)'",
        ),
        (IN_A_HEADER, 6, "stl_algo.h, line 1937: invalid type argument of unary '*' (have 'int')"),
        (
            CLANG,
            3,
            "use of undeclared identifier 'missing'\nstl_algo.h, line 1937: indirection requires pointer operand",
        ),
        (LINKER, None, "undefined reference to `frobnicate'"),
        ("kernel:9:1: internal compiler error: Segmentation fault\nPlease submit a bug", 9, "Segmentation fault"),
        ("", None, "the compiler failed without a message"),
    ],
    ids=["gcc", "header", "clang", "linker", "compiler", "silent"],
)
def test_cpp_reports(report, line, message):
    error = cpp_error("compile", report)
    assert (error.stage, error.line, error.message) == ("compile", line, message)


HEADER = "import math\n\n"


@pytest.mark.parametrize(("text", "message"), [("x = = 3", "SyntaxError: invalid syntax"), ("nothing()", "NameError")])
def test_a_file_that_does_not_run_says_where(tmp_path, text, message):
    path = tmp_path / "kernel.py"
    path.write_text(f"{HEADER}\n\n{text}\n")
    with pytest.raises((SyntaxError, NameError)) as caught:
        exec(compile(path.read_text(), str(path), "exec"), {})
    error = import_error(caught.value, path, HEADER.count("\n"))
    assert (error.stage, error.line) == ("import", 3)
    assert error.message.startswith(message)


def test_ptxas_reports():
    PTXASError = pytest.importorskip("triton.runtime.errors").PTXASError
    wrong = "Internal Triton PTX codegen error\n`ptxas` stderr:\nptxas /tmp/a.ptx, line 53; error   : Unknown modifier\n" \
            "ptxas fatal   : Ptx assembly aborted due to errors\n\nRepro command: ptxas -v /tmp/a.ptx"  # fmt: skip
    error = triton_error(PTXASError(wrong), "", "", 0)
    assert isinstance(error, BuildError) and error.stage == "ptxas"
    assert error.message == "Unknown modifier\nPtx assembly aborted due to errors"
    large = "ptxas error   : Entry function 'f' uses too much shared data (0x40000 bytes, 0x38c00 max)"
    over = triton_error(PTXASError(large), "", "", 0)
    assert isinstance(over, ResourceError)
    assert (over.resource, over.needed, over.available) == ("shared memory", 0x40000, 0x38C00)


def test_mlir_reports_lead_to_the_kernels_line():
    pytest.importorskip("triton")
    file = f"/tmp/build/triton/ab/{'ab' * 32}.py"
    printed = "standard.py:388:26: error: 'llvm.fcmp' op operand #0 must be floating point\n    ret = x > y\n" \
              f"standard.py:410:39: note: called from\n{file}:15:18: note: called from\n" \
              f"{file}:8:0: error: Failures have been detected while processing an MLIR pass pipeline\n"  # fmt: skip
    error = triton_error(RuntimeError("PassManager::run failed"), "", printed, 4)
    assert (error.stage, error.line) == ("mlir", 11)
    assert error.message == "'llvm.fcmp' op operand #0 must be floating point"
    assert triton_error(RuntimeError("PassManager::run failed"), "", "", 4).message.endswith("run failed")


SOURCE = """
@triton.jit
def helper(v):
    return v + missing

@triton.jit
def row_sum(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + tl.program_id(0) * WIDTH + at, mask=at < WIDTH, other=0.0)
    STATEMENT
    tl.store(out + tl.program_id(0), tl.sum(value, 0))
"""


@pytest.mark.parametrize(
    ("statement", "line", "message"),
    [
        ("value = value + other", 10, "NameError: other is not defined"),
        ("value = helper(value)", 4, "NameError: missing is not defined"),
        ("value = value + tl.arange(0, 100)", 10, "ValueError: arange's range must be a power of 2"),
        ("tl.static_assert(BLOCK == 3, 'block')", 10, "CompileTimeAssertionFailure: block"),
    ],
)
def test_tritons_front_end_says_where_and_why(tmp_path, statement, line, message):
    pytest.importorskip("triton")
    arguments = (Argument("input", 0), Argument("output", 0))
    launch = Launch("row_sum", arguments, ("500",), (("WIDTH", 100), ("BLOCK", 128)))
    kernel = Kernel("triton", SOURCE.replace("STATEMENT", statement), (launch,))
    with pytest.raises(BuildError) as caught:
        compile_for(kernel, row_sum_region("cuda"), "sm_90", tmp_path)
    assert (caught.value.stage, caught.value.line, caught.value.message) == ("triton", line, message)


def test_too_many_threads_are_told_before_anything_is_compiled(tmp_path):
    pytest.importorskip("triton")
    launch = Launch("helper", (Argument("input", 0),), ("1",), num_warps=64)
    with pytest.raises(ResourceError) as caught:
        compile_for(
            Kernel("triton", SOURCE.replace("STATEMENT", "pass"), (launch,)), row_sum_region("cuda"), "sm_90", tmp_path
        )
    assert (caught.value.resource, caught.value.needed, caught.value.available) == ("threads per block", 2048, 1024)


@contextmanager
def stderr_to(descriptor):
    saved = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_what_a_library_printed_is_read_back_from_a_file_and_not_from_a_pipe(tmp_path):
    with (tmp_path / "log").open("wb") as log, stderr_to(log.fileno()):
        os.write(2, b"before")
        position = stderr_position()
        os.write(2, b"after")
        assert stderr_since(position) == "after"
    read_end, write_end = os.pipe()
    with stderr_to(write_end):
        assert stderr_position() is None
    assert stderr_since(None) == ""
    os.close(read_end)
    os.close(write_end)
