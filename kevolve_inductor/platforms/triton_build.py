"""Triton kernels from text to functions, and from functions to machine code for a target that need not be here.

Triton is imported inside the functions: most processes that import this package never need it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import linecache
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..exc import BuildError, PlatformError, ResourceError
from ..graph.region import Region, TensorSpec
from ..kernel import Argument, Kernel, Launch
from .executor import Resources
from .messages import import_error, stderr_position, stderr_since, triton_error
from .occupancy import occupancy_of
from .ptx import mixes_swizzles

# Bytes of shared memory (LDS on AMD) that one block may have.
SHARED_LIMITS = {
    "sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024,
    "sm_103": 227 * 1024, "sm_120": 99 * 1024, "gfx90a": 64 * 1024, "gfx942": 64 * 1024, "gfx950": 160 * 1024,
}  # fmt: skip
POINTER_TYPES = {
    "float64": "*fp64", "float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int64": "*i64", "int32": "*i32",
    "int16": "*i16", "int8": "*i8", "uint8": "*u8", "bool": "*i1",
}  # fmt: skip

# As Inductor compiles the kernels of its wrappers: device assertions stay in, so that an index out of range stops the
# program as eager's own assertions do; what is timed must be what will run.
COMPILE_OPTIONS = {"debug": True, "sanitize_overflow": False}

_HEADER = "import triton\nimport triton.language as tl\nfrom triton.language.extra import libdevice\n\n"
# By which a line of a kernel's file lies below the same line of its source.
HEADER_LINES = _HEADER.count("\n")
_MOST_THREADS = 1024
_MODULES: dict[str, ModuleType] = {}


def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def triton_missing() -> str | None:
    """Why Triton cannot be used; found out without importing it."""
    return None if importlib.util.find_spec("triton") is not None else "triton is not installed"


def load_triton(kernel: Kernel, folder: Path) -> list[Any]:
    """One ``@triton.jit`` function per launch, from a file in ``folder`` that holds exactly the kernel's source.

    Triton reads a function's text from its file, so that a file there must be. The source is executed as a module:
    it has to have passed the gate. Raises ``BuildError`` where it does not define what is launched.
    """
    module = _module(kernel, folder)
    functions = [getattr(module, launch.function, None) for launch in kernel.launches]
    for launch, function in zip(kernel.launches, functions, strict=True):
        if function is None:
            raise BuildError("launch", f"the source defines no function {launch.function}")
    return functions


def _module(kernel: Kernel, folder: Path) -> ModuleType:
    if kernel.digest not in _MODULES:
        path = _written(kernel, folder)
        name = f"kevolve_triton_{kernel.digest[:32]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Triton looks a function's globals up through its module.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # noqa: BLE001 - the text of a candidate, which may raise anything
            del sys.modules[name]
            raise import_error(error, path, HEADER_LINES) from error
        _remember_text(path)
        _MODULES[kernel.digest] = module
    return _MODULES[kernel.digest]


def _remember_text(path: Path) -> None:
    """Inductor reads a function's text again for each graph, also after the file has gone with its store."""
    text = path.read_text()
    # Without a time of change the entry is never compared with the file.
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))


def _written(kernel: Kernel, folder: Path) -> Path:
    text = _HEADER + kernel.source
    place = folder / "triton" / kernel.digest[:2]
    path = place / f"{kernel.digest}.py"
    # What is there is compared, not trusted: the file is about to be executed.
    if not path.exists() or path.read_text() != text:
        place.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=place)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(name, path)
    return path


def compile_for(kernel: Kernel, region: Region, target: str, folder: Path) -> Resources:
    """Compile every launch for ``target`` (``"sm_90"``, ``"gfx942"``) with 16-byte aligned pointers; no GPU is needed.

    Raises ``BuildError``; ``ResourceError`` where a launch needs more shared memory than a block of the target has,
    which Triton itself notices only when the kernel is launched.
    """
    functions = load_triton(kernel, folder)
    used = [_compile_launch(kernel, region, k, functions[k], target) for k in range(len(functions))]
    return Resources(
        registers=_largest(one.registers for one in used),
        spills=_largest(one.spills for one in used),
        shared_bytes=_largest(one.shared_bytes for one in used),
        occupancy=min((one.occupancy for one in used if one.occupancy), key=lambda found: found.share, default=None),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _compile_launch(kernel: Kernel, region: Region, which: int, function: Any, target: str) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = kernel.launches[which]
    signature, constants, attributes = _signature(kernel, region, launch, list(function.arg_names))
    source = ASTSource(function, signature, constants, attributes)
    gpu = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", _capability(target), 32)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, **COMPILE_OPTIONS}
    threads = launch.num_warps * gpu.warp_size
    if threads > _MOST_THREADS:
        raise ResourceError("threads per block", threads, _MOST_THREADS)
    said = stderr_position()
    try:
        compiled = triton.compile(source, target=gpu, options=options)
    except Exception as error:  # noqa: BLE001 - a compiler under a candidate's text, which may raise anything
        raise triton_error(error, kernel.source, stderr_since(said), HEADER_LINES) from error
    shared = int(compiled.metadata.shared)
    limit = SHARED_LIMITS.get(target)
    if limit is not None and shared > limit:
        raise ResourceError("shared memory", shared, limit)
    if mixes_swizzles(str(compiled.asm.get("ptx", ""))):
        raise BuildError(
            "assembler", "one place in shared memory holds operands of two layouts, which is assembled wrongly"
        )
    registers, spills = _registers(compiled.asm)
    return Resources(registers, spills, shared, occupancy_of(target, launch.num_warps, registers, shared))


def _capability(target: str) -> int:
    found = re.fullmatch(r"sm_(\d+)a?", target)
    if found is None:
        raise PlatformError(f"{target!r} is no architecture: sm_90, gfx942 or gfx950 are")
    return int(found[1])


def _signature(
    kernel: Kernel, region: Region, launch: Launch, names: Sequence[str]
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Types, constants and alignment by parameter, as Triton's own launcher would find them for aligned tensors."""
    constants = dict(launch.constants)
    if len(names) != len(launch.arguments) + len(constants):
        raise BuildError(
            "launch", f"{launch.function} has {len(names)} parameters, not {len(launch.arguments) + len(constants)}"
        )
    unknown = set(constants) - set(names[len(launch.arguments) :])
    if unknown:
        raise BuildError("launch", f"{launch.function} has no constant {sorted(unknown)[0]}")
    signature = {name: _type(kernel, region, a) for name, a in zip(names, launch.arguments, strict=False)}
    attributes: dict[tuple[int, ...], Any] = {
        (k,): [["tt.divisibility", 16]] for k, a in enumerate(launch.arguments) if a.kind != "size"
    }
    signature |= dict.fromkeys(names[len(launch.arguments) :], "constexpr")
    values: dict[tuple[int, ...], Any] = {(list(names).index(name),): value for name, value in constants.items()}
    return signature, values, attributes


def _type(kernel: Kernel, region: Region, argument: Argument) -> str:
    if argument.kind == "size":
        return "i32"
    pools: dict[str, Sequence[Any]] = {
        "input": region.inputs,
        "output": region.output_specs,
        "workspace": kernel.workspaces,
    }
    pool: Sequence[TensorSpec] = pools[argument.kind]
    if argument.index >= len(pool):
        raise BuildError("launch", f"there is no {argument.kind} {argument.index}")
    dtype = pool[argument.index].dtype
    if dtype not in POINTER_TYPES:
        raise BuildError("launch", f"{dtype} cannot be passed to a Triton kernel")
    return POINTER_TYPES[dtype]


def _registers(asm: Any) -> tuple[int | None, int | None]:
    if "amdgcn" in asm:
        text = str(asm["amdgcn"])
        return _number(text, r"\.vgpr_count:\s*(\d+)"), _number(text, r"\.vgpr_spill_count:\s*(\d+)")
    if "cubin" in asm:
        report = _resource_usage(asm["cubin"])
        stack = _number(report, r"STACK:(\d+)")
        return _number(report, r"REG:(\d+)"), None if stack is None else stack // 4
    return None, None


def _number(text: str, pattern: str) -> int | None:
    found = [int(value) for value in re.findall(pattern, text)]
    return max(found, default=None)


def _resource_usage(cubin: bytes) -> str:
    """What ``cuobjdump`` (a copy comes with Triton) says of a binary; empty where there is none."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=False)
    return done.stdout
