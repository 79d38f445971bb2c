"""The CPU: C++ kernels built by the system's compiler and called directly on tensors' memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ..exc import CompilerMissingError
from ..graph.region import Region
from ..kernel import Kernel, Language
from .build_folder import build_folder
from .cpp_binding import generate_cpp, load_library
from .cpp_compiler import compile_cpp, find_compiler
from .platform import Ceilings, Platform, Target

__all__ = ["BuiltCpp", "CpuPlatform", "compile_cpp", "generate_cpp", "last_level_cache_bytes", "load_cpp"]

_CALLS: dict[str, Callable[..., None]] = {}

# Instruction-set features; the other words of /proc/cpuinfo describe power, virtualisation and mitigations.
_ISA_PREFIXES = ("sse", "ssse", "avx", "fma", "bmi", "f16c", "popcnt", "amx", "aes", "vaes", "pclmul", "vpclmul", "gfni",
                 "sha", "adx", "movbe", "abm", "asimd", "sve", "neon", "fphp", "bf16", "i8mm", "cx16")  # fmt: skip

# Triad of McCalpin's STREAM over three arrays, each beyond the last-level cache; a copy with stores past the caches, which
# do not read first what they overwrite; and chains of independent multiply-adds in registers; best of a few repeats.
_CEILINGS = r"""
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <omp.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif
typedef float lanes __attribute__((vector_size(__BIGGEST_ALIGNMENT__)));
static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
extern "C" __attribute__((visibility("default"))) double triad(int64_t n, int repeats) {
  float* a = (float*)std::aligned_alloc(64, n * 4);
  float* b = (float*)std::aligned_alloc(64, n * 4);
  float* c = (float*)std::aligned_alloc(64, n * 4);
  double best = 1e30;
  if (a && b && c) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) { a[i] = 0; b[i] = 1; c[i] = 2; }
    for (int r = 0; r < repeats; r++) {
      double start = now();
#pragma omp parallel for
      for (int64_t i = 0; i < n; i++) a[i] = b[i] + 3.0f * c[i];
      double took = now() - start;
      best = took < best ? took : best;
    }
  }
  std::free(a); std::free(b); std::free(c);
  return 12.0 * n / best;
}
extern "C" __attribute__((visibility("default"))) double copy_past_caches(int64_t n, int repeats) {
  double best = 1e30;
#if defined(__AVX__)
  float* a = (float*)std::aligned_alloc(64, n * 4);
  float* b = (float*)std::aligned_alloc(64, n * 4);
  if (a && b) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) { a[i] = 0; b[i] = 1; }
    for (int r = 0; r < repeats; r++) {
      double start = now();
#pragma omp parallel for
      for (int64_t i = 0; i < n; i += 8) _mm256_stream_ps(a + i, _mm256_load_ps(b + i));
      double took = now() - start;
      best = took < best ? took : best;
    }
  }
  std::free(a); std::free(b);
#endif
  return 8.0 * n / best;
}
extern "C" __attribute__((visibility("default"))) double multiply_add(int64_t steps, int repeats) {
  double best = 1e30;
  int threads = 1;
  for (int r = 0; r < repeats; r++) {
    double start = now();
#pragma omp parallel
    {
#pragma omp single
      threads = omp_get_num_threads();
      lanes scale = lanes{} + 0.999f, add = lanes{} + 0.5f;
      lanes a = add, b = a + add, c = b + add, d = c + add, e = d + add;
      lanes f = e + add, g = f + add, h = g + add, p = h + add, q = p + add;
      for (int64_t i = 0; i < steps; i++) {
        a = a * scale + add; b = b * scale + add; c = c * scale + add; d = d * scale + add; e = e * scale + add;
        f = f * scale + add; g = g * scale + add; h = h * scale + add; p = p * scale + add; q = q * scale + add;
      }
      lanes sum = a + b + c + d + e + f + g + h + p + q;
      asm volatile("" : : "r"(&sum) : "memory");
    }
    double took = now() - start;
    best = took < best ? took : best;
  }
  return 2.0 * (sizeof(lanes) / sizeof(float)) * 10 * steps * threads / best;
}
extern "C" __attribute__((visibility("default"))) double fork_join(int repeats) {
  double best = 1e30;
  for (int r = 0; r < repeats; r++) {
    double start = now();
#pragma omp parallel
    { asm volatile(""); }
    double took = now() - start;
    best = took < best ? took : best;
  }
  return best;
}
"""
_TRIAD_CACHES = 2


@dataclass(frozen=True)
class BuiltCpp:
    """A compiled kernel: the complete text, the shared object, and the function in this process."""

    text: str
    path: Path
    call: Callable[..., None]


class CpuPlatform(Platform):
    name = "cpu"
    language: Language = "cpp"

    def target(self) -> Target:
        return _target(torch.get_num_threads())

    def ceilings(self) -> Ceilings:
        """Raises ``CompilerMissingError`` where there is no compiler to measure with."""
        return _ceilings(torch.get_num_threads())

    def available(self) -> str | None:
        if platform.system() != "Linux":
            return f"C++ kernels are built on Linux only, not on {platform.system()}"
        try:
            find_compiler()
        except CompilerMissingError as error:
            return str(error)
        return None

    def build(self, kernel: Kernel, region: Region, folder: Path) -> BuiltCpp:
        """Raises ``BuildError`` where the compiler refuses the kernel, ``CompilerMissingError`` where there is none."""
        text = generate_cpp(kernel, region)
        path = compile_cpp(text, folder)
        return BuiltCpp(text, path, load_library(path))

    def release_unused(self) -> None:
        # Of glibc. Large tensors stay with the process where it does not map them one by one, as in workers.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def load_cpp(text: str) -> Callable[..., None]:
    """The callable of a complete generated text, built if the build folder does not hold it yet; once per process and text.

    This is what a compiled graph calls, perhaps in a process that never imported the rest of this package. Raises what
    ``compile_cpp`` raises.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest not in _CALLS:
        _CALLS[digest] = load_library(compile_cpp(text, build_folder()))
    return _CALLS[digest]


@cache
def _target(threads: int) -> Target:
    features = _features()
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    toolchain = {"torch": torch.__version__, "python": platform.python_version()}
    try:
        compiler = find_compiler()
        toolchain |= {
            "compiler": compiler.version,
            "flags": hashlib.sha256(" ".join(compiler.flags).encode()).hexdigest()[:16],
        }
    except CompilerMissingError:
        toolchain["compiler"] = "none"
    return Target(
        platform="cpu",
        chip=_chip(),
        features=features,
        threads=threads,
        units=len(os.sched_getaffinity(0)),
        shared_bytes=_cache_bytes(2),
        warp_size=lanes,
        toolchain=toolchain,
    )


def _cpu_information() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    entries: dict[str, str] = {}
    for line in path.read_text().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        entries[name.strip()] = value.strip()
    return entries


def _chip() -> str:
    entries = _cpu_information()
    # Virtual machines name very different chips alike, so family and model belong to the name.
    numbers = "/".join(
        entries.get(name, "") for name in ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
    )
    return f"{entries.get('model name') or platform.processor() or platform.machine()} ({numbers.strip('/')})"


def _features() -> tuple[str, ...]:
    entries = _cpu_information()
    words = (entries.get("flags") or entries.get("Features") or "").split()
    return tuple(sorted(word for word in words if word.startswith(_ISA_PREFIXES)))


def last_level_cache_bytes() -> int:
    return _cache_bytes(None)


@cache
def _cache_bytes(level: int | None) -> int:
    """Size of one data cache, of the highest level for ``None``; a common size where the system does not tell."""
    sizes: dict[int, int] = {}
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (entry / "type").read_text().strip() != "Instruction":
            text = (entry / "size").read_text().strip()
            unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
            sizes[int((entry / "level").read_text())] = int(text.rstrip("KMG")) * unit
    if level is None:
        return sizes[max(sizes)] if sizes else 32 * 2**20
    return sizes.get(level, 2**20)


@cache
def _ceilings(threads: int) -> Ceilings:
    return measured_ceilings()


def measured_ceilings() -> Ceilings:
    """Measured now. Whatever else runs on the machine lowers the figures, so a doubtful one is worth a second look."""
    with tempfile.TemporaryDirectory(prefix="kevolve-") as folder:
        library = ctypes.CDLL(str(compile_cpp(_CEILINGS, Path(folder), checked=False)))
    for name, arguments in (
        ("triad", (ctypes.c_int64, ctypes.c_int)),
        ("copy_past_caches", (ctypes.c_int64, ctypes.c_int)),
        ("multiply_add", (ctypes.c_int64, ctypes.c_int)),
        ("fork_join", (ctypes.c_int,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_double, arguments
    floats = min(_TRIAD_CACHES * last_level_cache_bytes(), 2**28) // 64 * 16
    single = library.multiply_add(2_000_000, 5)
    return Ceilings(
        bytes_per_s=max(library.triad(floats, 6), library.copy_past_caches(floats, 6)),
        flops_per_s={"float32": single, "float64": single / 2},
        launch_s=min(library.fork_join(200) for _ in range(3)),
    )
