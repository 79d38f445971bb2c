"""C++ kernels under the compilers' sanitizers, each as a program of its own that no other code shares a process with.

AddressSanitizer and UndefinedBehaviorSanitizer see accesses outside of buffers that are allocated exactly, misaligned ones,
impossible shifts and the like; ThreadSanitizer sees accesses of two threads that nothing orders. Reads of memory that
nobody wrote are no sanitizer's business; but outputs that change with what was in memory before are found here as well.
What none of them sees: accesses by target-specific instructions with masks or gathered addresses, and a race between
threads that a critical section, on its way, happened to order.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ..evaluation import Crashed
from .cpp_build import ADDRESS, THREAD, Program, Sanitizer, address_program, thread_program
from .cpp_program import program_arguments
from .cpp_report import UNINITIALISED, finding
from .tool import Case, Clean, Ended, NotRun, Verdict

_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)


def sanitize_cpp(case: Case, scratch: Path) -> Iterator[tuple[str, Verdict]]:
    """What each sanitizer says, one after the other."""
    program = address_program(case, scratch)
    yield ADDRESS.name, _judge(program, 1, case, scratch)
    yield THREAD.name, _judge(thread_program(case, scratch), 1, case, scratch)
    # Last, since a race changes outputs as well. With the target's threads: other numbers of them sum in other orders.
    yield UNINITIALISED, _judge(program, 2, case, scratch)


def _judge(program: Program | NotRun, turns: int, case: Case, scratch: Path) -> Verdict:
    if isinstance(program, NotRun):
        return program
    seconds = 0.0
    clean: list[str] = []
    ended: Ended | None = None
    for inputs in case.inputs:
        arguments = program_arguments(case, inputs, scratch)
        start = time.monotonic()
        ended = program.run(turns, arguments, case.limit_s - seconds)
        seconds += time.monotonic() - start
        if ended is None:
            break
        fault = _fault(ended, program.sanitizer, case)
        if fault is not None:
            return fault
        if program.sanitizer.proof in ended.output:
            clean.append(inputs)
    if clean:
        return Clean(tuple(clean), seconds)
    return NotRun(f"took longer than {case.limit_s:g} s" if ended is None else "no input made the kernel start threads")


def _fault(ended: Ended, sanitizer: Sanitizer, case: Case) -> Verdict | None:
    if ended.code == 0:
        return None
    found = finding(ended.output, case.kernel.source)
    if found is not None:
        return found
    if ended.code < 0 and -ended.code not in _FROM_OUTSIDE:
        return Crashed(-ended.code, f"under the {sanitizer.name}: {ended.last_words}")
    return NotRun(f"exit status {ended.code}: {ended.last_words}")
