"""Whether a kernel that was judged right is also free of faults that its outputs do not show.

Sanitizers are too slow for every candidate: the kernels that won are run under them, in processes of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...graph.region import Region, Workload
from ...kernel import Language
from ..build import gate
from ..evaluation import Crashed, Refused
from ..inputs import FENCED, OUT_OF_RANGE, at_other_sizes, distributions_for
from .cpp import sanitize_cpp
from .cuda import sanitize_cuda
from .tool import Case, Clean, NotRun, Verdict

_SANITIZERS: Mapping[Language, Callable[[Case, Path], Iterator[tuple[str, Verdict]]]] = {
    "cpp": sanitize_cpp,
    "triton": sanitize_cuda,
}
# Indices at the ends of their range and beyond are what most often leads outside.
_FIRST = ("normal", *OUT_OF_RANGE, "constant", "zeros")


@dataclass(frozen=True)
class Sanitized:
    """No sanitizer found a fault. ``checks``: what each of them did, or why it was not run."""

    checks: Mapping[str, Clean | NotRun]

    def to_json(self) -> dict[str, str]:
        """Evidence for people: ``{"thread sanitizer": "clean on normal, ties (0.4 s)"}``."""
        return {name: str(check) for name, check in self.checks.items()}


def sanitize(case: Case) -> Sanitized | Refused | Crashed:
    """Run the sanitizers for the kernel's language until one finds a fault, whose ``check`` names it.

    Raises ``OSError`` where the build folder cannot be written.
    """
    refusal = gate(case.kernel)
    if refusal is not None:
        return refusal
    checks: dict[str, Clean | NotRun] = {}
    with tempfile.TemporaryDirectory(prefix="sanitize-", dir=case.setup.folder) as scratch:
        sanitizers = _SANITIZERS.get(case.kernel.language)
        for name, verdict in sanitizers(case, Path(scratch)) if sanitizers else ():
            if isinstance(verdict, Refused | Crashed):
                return verdict
            checks[name] = verdict
    return Sanitized(checks)


def telling_inputs(region: Region, workload: Workload) -> tuple[str, ...]:
    """Names of inputs for a :class:`Case`; those at other sizes are still to be asked whether the region takes them."""
    names = tuple(name for name in distributions_for(region, workload) if name != FENCED)
    first = tuple(name for name in _FIRST if name in names)
    return (*first, *at_other_sizes(region, workload), *(name for name in names if name not in first))
