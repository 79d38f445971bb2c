"""A sanitizer as a tool beside us: what it is asked, what it may say, and its process."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...graph.region import Region, Workload
from ...kernel import Kernel
from ...platforms.processes import end_group
from ..evaluation import Crashed, Refused
from ..job import WorkerSetup

_OUTPUT_BYTES = 2**18


@dataclass(frozen=True)
class Case:
    """A kernel with the names of the inputs (see ``evaluate.inputs``) to run it on, the most telling first.

    ``setup`` is that of the workers that judged it; ``limit_s`` is for one sanitizer's runs together, without its build.
    """

    kernel: Kernel
    region: Region
    workload: Workload
    inputs: tuple[str, ...]
    setup: WorkerSetup
    limit_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel.to_json(),
            "region": self.region.to_json(),
            "workload": self.workload.to_json(),
            "inputs": self.inputs,
            "setup": self.setup.to_json(),
            "limit_s": self.limit_s,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        return cls(
            Kernel.from_json(data["kernel"]),
            Region.from_json(data["region"]),
            Workload.from_json(data["workload"]),
            tuple(data["inputs"]),
            WorkerSetup.from_json(data["setup"]),
            data["limit_s"],
        )


@dataclass(frozen=True)
class Clean:
    """Ran on ``inputs`` and found nothing. ``seconds`` count runs, not builds."""

    inputs: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return f"clean on {', '.join(self.inputs)} ({self.seconds:.1f} s)"


@dataclass(frozen=True)
class NotRun:
    """Says nothing about the kernel, and why: the tool is missing, or cannot follow what the kernel does."""

    reason: str

    def __str__(self) -> str:
        return f"not run: {self.reason}"


Verdict = Clean | NotRun | Refused | Crashed


@dataclass(frozen=True)
class Ended:
    """``code`` is the exit status, negative where a signal ended the process; ``output`` the end of what it printed."""

    code: int
    output: str

    @property
    def last_words(self) -> str:
        return self.output.strip()[-300:]


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The whole memory that a tensor is a view of, as bytes."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def run_bounded(command: Sequence[str], folder: Path, environment: Mapping[str, str], limit_s: float) -> Ended | None:
    """Run ``command`` in ``folder``; ``None`` where it took longer than ``limit_s``. It leaves no process behind.

    Raises ``OSError`` where it cannot be started.
    """
    log = folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command), cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)
    return Ended(code, log.read_bytes()[-_OUTPUT_BYTES:].decode(errors="replace"))
