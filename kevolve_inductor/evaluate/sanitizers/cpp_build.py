"""The program of a C++ kernel, built with one of the compiler's sanitizers, and how it is run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ... import settings
from ...exc import CompilerMissingError
from ...platforms.cpp_compiler import Compiler, find_compiler
from .cpp_program import program_text
from .tool import Case, Ended, NotRun, run_bounded

_LIMIT_S = 120.0
# A race needs several threads, whatever the machine has.
_LEAST_THREADS = 4
_OPENMP = Path(__file__).with_name("openmp.cpp")
# Lines for the reports; the rest overrides what the real build is made with. Overflow of signed integers is defined there.
_FLAGS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fasynchronous-unwind-tables", "-fno-sanitize-recover=all")
_STARTS_THREADS = re.compile(r"#\s*pragma\s+omp\b(?!\s+simd)")
_NOT_LINKED = re.compile(r"undefined reference to `(\w+)'")
# An instrumented program needs some addresses for itself, which a strongly randomising system may already use.
_ADDRESSES_TAKEN = "unexpected memory mapping"


@dataclass(frozen=True)
class Sanitizer:
    """``proof``: what a program prints where the sanitizer had something to see."""

    name: str
    flags: tuple[str, ...]
    options: Mapping[str, str]
    proof: str = ""


ADDRESS = Sanitizer(
    "address and undefined behaviour sanitizers",
    ("-fsanitize=address,undefined", "-fno-sanitize=signed-integer-overflow"),
    {"ASAN_OPTIONS": "detect_leaks=0:redzone=2048:quarantine_size_mb=16", "UBSAN_OPTIONS": "print_stacktrace=1"},
)
THREAD = Sanitizer(
    "thread sanitizer", ("-fsanitize=thread",), {"TSAN_OPTIONS": "halt_on_error=1"}, "openmp: several threads"
)


@dataclass(frozen=True)
class Program:
    sanitizer: Sanitizer
    path: Path
    threads: int

    def run(self, turns: int, arguments: list[str], limit_s: float) -> Ended | None:
        """Of several ``turns``, each finds other bytes in its memory and must come to the same outputs."""
        environment = {**settings.worker_environment(), **self.sanitizer.options, "OMP_NUM_THREADS": str(self.threads)}
        command = [str(self.path), str(turns), *arguments]
        ended = run_bounded(command, self.path.parent, environment, limit_s)
        if ended is not None and _ADDRESSES_TAKEN in ended.output and shutil.which("setarch"):
            return run_bounded(["setarch", "-R", *command], self.path.parent, environment, limit_s)
        return ended


def address_program(case: Case, scratch: Path) -> Program | NotRun:
    """With the target's threads and, like the real kernel, torch's own OpenMP runtime."""
    compiler = _compiler()
    if isinstance(compiler, NotRun):
        return compiler
    runtime = compiler.openmp
    libraries = (str(runtime), f"-Wl,-rpath,{runtime.parent}") if runtime is not None else ()
    return _built(Program(ADDRESS, scratch / "address" / "program", case.setup.threads), case, compiler, {}, libraries)


def thread_program(case: Case, scratch: Path) -> Program | NotRun:
    """With our instrumented OpenMP runtime, and several threads in any case."""
    compiler = _compiler()
    if isinstance(compiler, NotRun):
        return compiler
    if "-fopenmp" not in compiler.flags:
        return NotRun("kernels are built without OpenMP here")
    if not _STARTS_THREADS.search(case.kernel.source):
        return NotRun("the kernel starts no threads")
    threads = max(case.setup.threads, _LEAST_THREADS)
    runtime = {"openmp.cpp": f"#define KEVOLVE_THREADS {threads}\n{_OPENMP.read_text()}"}
    return _built(Program(THREAD, scratch / "thread" / "program", threads), case, compiler, runtime, ())


def _compiler() -> Compiler | NotRun:
    try:
        return find_compiler()
    except CompilerMissingError as error:
        return NotRun(str(error))


def _built(
    program: Program, case: Case, compiler: Compiler, more: Mapping[str, str], libraries: tuple[str, ...]
) -> Program | NotRun:
    """Linked in a step of its own and without -fopenmp, which would add the system's runtime."""
    folder, flags = program.path.parent, program.sanitizer.flags
    folder.mkdir()
    texts = {"program.cpp": program_text(case), **more}
    for name, text in texts.items():
        folder.joinpath(name).write_text(text)
    objects = (name.replace(".cpp", ".o") for name in texts)
    compiling = (*compiler.command, *compiler.flags, *_FLAGS, *flags, "-c", *texts)
    linking = (*compiler.command, *flags, "-o", program.path.name, *objects, *libraries, "-lm", "-lpthread")
    for command in (compiling, linking):
        ended = run_bounded(command, folder, settings.worker_environment(), _LIMIT_S)
        if ended is None:
            return NotRun(f"its build took longer than {_LIMIT_S:g} s")
        missing = _NOT_LINKED.search(ended.output)
        if ended.code != 0 and missing is not None:
            return NotRun(f"{missing[1]} is not followed")
        if ended.code != 0:
            return NotRun(f"it was not built: {ended.last_words}")
    return program
