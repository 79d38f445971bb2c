"""What the compilers' sanitizers printed, cut to what a kernel's author needs: what happened, where, to which memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..evaluation import Refused

UNINITIALISED = "uninitialised memory"
_HEADLINES = (
    ("address sanitizer", re.compile(r"ERROR: AddressSanitizer: (?P<what>[\w-]+)")),
    ("thread sanitizer", re.compile(r"(?:WARNING|ERROR): ThreadSanitizer: (?P<what>[\w -]+?) (?:\(|on )")),
    ("undefined behaviour sanitizer", re.compile(r"runtime error: (?P<what>.*)")),
)
_UNWRITTEN = re.compile(r"^memory: (?P<what>.*)", re.MULTILINE)
_ACCESS = re.compile(r"^ *(?:Previous )?(?P<what>(?:atomic )?(?:read|write) of size \d+)", re.MULTILINE | re.IGNORECASE)
_DISTANCE = re.compile(r"is located (\d+ bytes .*?-byte region)")
# In front of an error, or in a frame of a stack.
_LINE = re.compile(r"(?:^|[\s/])kernel:(\d+)", re.MULTILINE)
# The declaration that allocated the memory: every buffer's is in a file of its own name.
_BUFFER = re.compile(r"[\s/](input|output|workspace)_(\d+):\d+")


def finding(output: str, source: str) -> Refused | None:
    """The first fault in ``output``; ``None`` where no sanitizer reported one in a line of the kernel's ``source``."""
    unwritten = _UNWRITTEN.search(output)
    if unwritten is not None:
        why = "it depends on what was in memory before, or on the threads' order"
        return Refused(UNINITIALISED, f"{unwritten['what']} differs between two calls: {why}")
    for check, pattern in _HEADLINES:
        headline = pattern.search(output)
        if headline is not None:
            report = output[output.rfind("\n", 0, headline.start()) + 1 :]
            places = list(_places(report, source))
            parts = [headline["what"], *places, *_memory(report)]
            return Refused(check, ", ".join(parts)) if places else None
    return None


def _places(report: str, source: str) -> Iterator[str]:
    """``"read of size 4 in line 7 (x += y[i];)"`` for every access with a line of the kernel, or the line alone."""
    accesses = list(_ACCESS.finditer(report))
    starts = [access.end() for access in accesses] or [0]
    for k, start in enumerate(starts):
        line = _LINE.search(report, start, starts[k + 1] if k + 1 < len(starts) else len(report))
        if line is not None:
            text = source.splitlines()[int(line[1]) - 1 :][:1]
            what = f"{accesses[k]['what'].lower()} " if accesses else ""
            yield f"{what}in line {line[1]} ({''.join(text).strip()})"


def _memory(report: str) -> Iterator[str]:
    distance, buffer = _DISTANCE.search(report), _BUFFER.search(report)
    if distance is not None:
        yield distance[1]
    if buffer is not None:
        yield f"{buffer[1]} {buffer[2]}"
