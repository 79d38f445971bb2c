"""Compilers' reports cut to what matters: which stage refused the text, where in it, and why, without the tool's own noise.

Lines are of the kernel's text. What a report says about files that come with a compiler is told by name only.
"""

from __future__ import annotations

import os
import re
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..exc import BuildError, ResourceError

_LENGTH = 1500
_ERRORS = 4
# The names under which C++ compilers see a kernel's text.
_KERNEL_FILES = ("kernel", "<stdin>")
_DIAGNOSTIC = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):(?:\d+:)? (?:fatal |internal compiler )?error: (?P<text>.*)$", re.MULTILINE
)
_INSTANTIATED = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+):.*\b(?:required from|requested) here", re.MULTILINE)
_LINKING = re.compile(r"undefined reference to .*|multiple definition of .*|cannot find .*|undefined symbol: .*")
_REPR = re.compile(r"(?P<name>\w+)\((?P<quote>['\"])(?P<text>.*)(?P=quote)\)", re.DOTALL)
_PTXAS = re.compile(r"(?:error|fatal)\s*: (?P<text>.*)$", re.MULTILINE)
_PTXAS_SHARED = re.compile(r"too much shared data \((0x[0-9a-f]+) bytes, (0x[0-9a-f]+) max\)")
_PIPELINE = "processing an MLIR pass pipeline"
_MLIR = re.compile(r"(?P<file>[^\s:\"(]+)\"?:(?P<line>\d+):\d+\)?: (?P<kind>error|note): (?P<text>.*)$", re.MULTILINE)


def cpp_error(stage: str, report: str) -> BuildError:
    """Of gcc's or clang's report: its first errors, each once, without notes and what includes what."""
    found = list(_DIAGNOSTIC.finditer(report))
    if not found:
        linking = list(dict.fromkeys(_LINKING.findall(report)))[:_ERRORS]
        return BuildError(
            stage, "\n".join(linking) or report.strip()[:_LENGTH] or "the compiler failed without a message"
        )
    # An error in a header has its reason where the kernel uses it, which gcc says before and clang after it.
    places = [match for match in (*found, *_INSTANTIATED.finditer(report)) if match["file"] in _KERNEL_FILES]
    line = int(places[0]["line"]) if places else None
    errors = dict.fromkeys(f"{_place(match, line)}{match['text']}" for match in found)
    return BuildError(stage, "\n".join(list(errors)[:_ERRORS])[:_LENGTH], line)


def _place(match: re.Match[str], line: int | None) -> str:
    if match["file"] not in _KERNEL_FILES:
        return f"{Path(match['file']).name}, line {match['line']}: "
    return "" if int(match["line"]) == line else f"line {match['line']}: "


def import_error(error: Exception, path: Path, header_lines: int) -> BuildError:
    """Of running a Triton kernel's file ``path``, whose text begins after ``header_lines``."""
    if isinstance(error, SyntaxError):
        line, message = error.lineno, f"{type(error).__name__}: {error.msg}"
    else:
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line, message = (frames[-1] if frames else None), f"{type(error).__name__}: {error}"
    return BuildError("import", message[:_LENGTH], None if line is None else line - header_lines)


def triton_error(error: Exception, source: str, printed: str, header_lines: int) -> BuildError | ResourceError:
    """Of compiling a Triton kernel's ``source``; ``printed`` is what the compiler wrote to stderr meanwhile."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import PTXASError

    if isinstance(error, PTXASError):
        return _ptxas_error(error.error_message or "")
    chain = [cause for cause in _causes(error) if isinstance(cause, CompilationError)]
    if chain:
        lines = [line for line in (_line_of(cause, source) for cause in chain) if line is not None]
        # The innermost knows best, unless it stands in Triton's own library.
        return BuildError("triton", _front_end_message(chain[-1])[:_LENGTH], lines[-1] if lines else None)
    locations = list(_MLIR.finditer(printed))
    reasons = [match["text"] for match in locations if match["kind"] == "error" and _PIPELINE not in match["text"]]
    if not reasons:
        return BuildError("triton", f"{type(error).__name__}: {error}"[:_LENGTH])
    # The error's own place may be in Triton's library; the notes after it lead to the kernel's line.
    ours = [int(match["line"]) - header_lines for match in locations if _is_digest(Path(match["file"]).stem)]
    return BuildError("mlir", "\n".join(dict.fromkeys(reasons))[:_LENGTH], ours[0] if ours else None)


def _causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__


def _line_of(error: Any, source: str) -> int | None:
    """Triton counts from the first line of the function that it was compiling."""
    start = source.find(error.src.strip()[:200]) if error.src else -1
    line = getattr(error.node, "lineno", None)
    return None if start < 0 or line is None else source.count("\n", 0, start) + int(line)


def _front_end_message(error: Any) -> str:
    """Triton often puts another exception's text, or its ``repr``, in place of a message."""
    cause, message = error.__cause__, error.error_message
    if cause is not None and message in (None, str(cause), repr(cause)):
        return f"{type(cause).__name__}: {cause}"
    shown = _REPR.fullmatch(message or "")
    return f"{shown['name']}: {shown['text']}" if shown else f"{type(error).__name__}: {message or 'no message'}"


def _ptxas_error(message: str) -> BuildError | ResourceError:
    shared = _PTXAS_SHARED.search(message)
    if shared is not None:
        return ResourceError("shared memory", int(shared[1], 16), int(shared[2], 16))
    found = list(dict.fromkeys(match["text"] for match in _PTXAS.finditer(message)))[:_ERRORS]
    return BuildError("ptxas", "\n".join(found)[:_LENGTH] or message.partition("Repro command")[0].strip()[:_LENGTH])


def _is_digest(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", name) is not None


def stderr_position() -> int | None:
    """Where this process' stderr stands, if it is a file that can be read again."""
    try:
        status = os.fstat(2)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def stderr_since(position: int | None) -> str:
    """What was written there since: compilers in libraries say on stderr what their exceptions do not."""
    if position is None:
        return ""
    try:
        with open("/proc/self/fd/2", "rb") as file:
            file.seek(position)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
