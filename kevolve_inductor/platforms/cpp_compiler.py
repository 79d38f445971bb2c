"""The system's C++ compiler: found once per process, with concrete flags, and a content-addressed cache of what it built."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from .. import settings
from ..exc import BuildError, CompilerMissingError
from .cpp_imports import check_imports, check_memory
from .messages import cpp_error
from .processes import end_group

# What objects are checked for when they are built; those of an older build folder were checked for less.
_CHECKS = "imports, memory"

_BASE_FLAGS = (
    "-O3", "-std=c++20", "-fPIC", "-fwrapv", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
    "-fvisibility=hidden", "-fno-asynchronous-unwind-tables", "-w",
)  # fmt: skip
_PROBE_TIMEOUT_S = 20.0
_BUILD_TIMEOUT_S = 60.0
# Of addresses; what kernels need to be compiled is a tenth of it.
_BUILD_MEMORY_KIB = 4 * 2**20


@dataclass(frozen=True)
class Compiler:
    """``flags`` name the instruction set explicitly, so that equal flags mean equal code on every machine."""

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    openmp: Path | None

    def key(self, text: str) -> str:
        """Digest of everything a built object depends on."""
        runtime = self.openmp.name if self.openmp else ""
        parts = (_CHECKS, text, self.version, *self.flags, runtime, str(sysconfig.get_config_var("SOABI")))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def find_compiler() -> Compiler:
    """The first candidate that understands C++20. Raises ``CompilerMissingError`` naming those tried."""
    return _find_compiler(settings.compiler_candidates())


@cache
def _find_compiler(candidates: tuple[str, ...]) -> Compiler:
    for candidate in candidates:
        command = tuple(shlex.split(candidate))
        version = _output_of(*command, "--version")
        if version and _output_of(*command, "-std=c++20", "-x", "c++", "-fsyntax-only", os.devnull) is not None:
            openmp = loaded_openmp()
            # clang calls its own OpenMP runtime by other names than libgomp has, and two runtimes mean two thread pools.
            if openmp is not None and "clang" in version.lower() and "gomp" in openmp.name:
                openmp = None
            flags = (*_BASE_FLAGS, *_machine_flags(command), *(("-fopenmp",) if openmp else ()))
            return Compiler(command, version.splitlines()[0], flags, openmp)
    raise CompilerMissingError(f"no C++20 compiler found; tried {', '.join(candidates)}")


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def _machine_flags(command: tuple[str, ...]) -> tuple[str, ...]:
    """What ``-march=native`` means here, spelled out; empty (the baseline instruction set) where that cannot be told."""
    report = _output_of(*command, "-march=native", "-###", "-x", "c++", "-c", os.devnull, "-o", os.devnull) or ""
    for line in report.splitlines():
        if " -cc1 " in line or '"-cc1"' in line:
            words = shlex.split(line)
            return (f"-march={words[words.index('-target-cpu') + 1]}",) if "-target-cpu" in words else ()
        if "cc1plus" in line:
            words = shlex.split(line)
            return tuple(word for word in words if word.startswith("-m") and word != "-march=native")
    return ()


@cache
def loaded_openmp() -> Path | None:
    """The OpenMP runtime that torch runs on, so that kernels share its threads; ``None`` where there is none."""
    torch.get_num_threads()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    for line in maps.read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if re.match(r"lib(gomp|iomp5|omp)\b.*\.so", path.name):
            return path
    return None


def compile_cpp(text: str, folder: Path, checked: bool = True) -> Path:
    """The shared object built from ``text``, from the cache in ``folder`` if its content is what was written there.

    Safe to call from several threads and processes. Raises ``BuildError`` where the compiler refuses the text,
    ``GateError`` where the object would call what no kernel may (unless not ``checked``), ``CompilerMissingError`` where
    there is no compiler, ``OSError`` where ``folder`` cannot be written.
    """
    compiler = find_compiler()
    key = compiler.key(text)
    place = folder / "cpp" / key[:2]
    library, checksum = place / f"{key}.so", place / f"{key}.sha256"
    if _is_intact(library, checksum):
        return library
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / f"{key}.lock"):
        if not _is_intact(library, checksum):
            content = _build(compiler, text, checked)
            if checked:
                check_imports(content)
            _write(checksum, hashlib.sha256(content).hexdigest().encode())
            _write(library, content)
    return library


def _is_intact(library: Path, checksum: Path) -> bool:
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == checksum.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _build(compiler: Compiler, text: str, checked: bool) -> bytes:
    with tempfile.TemporaryDirectory(prefix="kevolve-") as scratch:
        unit, library = Path(scratch, "kernel.o"), Path(scratch, "kernel.so")
        # The text goes through standard input: a file's name would be part of the object.
        _run((*compiler.command, *compiler.flags, "-x", "c++", "-c", "-o", str(unit), "-"), text, "compile")
        if checked:
            check_memory(unit.read_bytes())
        # Linked in a step of its own and without -fopenmp, which would add the system's runtime beside torch's.
        runtime = [str(compiler.openmp)] if compiler.openmp else []
        _run((*compiler.command, "-shared", "-s", "-o", str(library), str(unit), *runtime, "-lm"), "", "link")
        return library.read_bytes()


def _run(command: tuple[str, ...], text: str, stage: str) -> None:
    bounded = ("/bin/sh", "-c", f'ulimit -v {_BUILD_MEMORY_KIB}; exec "$@"', "sh", *command)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        bounded, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:  # fmt: skip
        try:
            _, report = process.communicate(text, _BUILD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise BuildError(stage, f"took longer than {_BUILD_TIMEOUT_S:g} s") from None
        finally:
            if process.returncode is None:
                # With what the compiler's driver started, which would go on without it.
                end_group(process)
    if process.returncode != 0:
        raise cpp_error(stage, report)


def _write(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, 0o600 if path.suffix != ".so" else 0o700)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
