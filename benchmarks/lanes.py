"""Several runs of ``benchmarks.longtail`` side by side, which share the cases out among themselves.

    python -m benchmarks.lanes COUNT --out OUT.json [--large NAME ...] [--end-s 560] ARGUMENTS OF longtail

A search waits for compilers on a few processors more than for its GPU, so that one GPU serves several lanes. Each has its
part of the processors and one of the GPUs. ``--large`` names cases of which two at once would not fit on a GPU: the first
lane takes them one after another before it takes others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from . import record
from .merge import merged


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 where every lane's is."""
    parser = argparse.ArgumentParser(prog="lanes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--large", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--end-s", type=float, help="end every lane after so many seconds, whatever it is at")
    arguments, rest = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="kevolve-lanes-") as folder:
        lanes = [
            _Lane(number, arguments.count, Path(folder), rest, arguments.large) for number in range(arguments.count)
        ]
        codes = _ended(lanes, arguments.end_s)
        documents = [json.loads(lane.out.read_text()) for lane in lanes if lane.out.exists()]
    if not documents:
        print("no lane has a result; what went wrong is said above", file=sys.stderr)
        return 1
    record.write(arguments.out, merged(documents))
    return int(any(codes))


class _Lane:
    """One process. The first one knows of the large cases, and all others leave them to it."""

    def __init__(self, number: int, count: int, folder: Path, arguments: Sequence[str], large: Sequence[str]) -> None:
        self.out = folder / f"{number}.json"
        command = [sys.executable, "-m", "benchmarks.longtail", *arguments, "--out", str(self.out)]
        command += ["--claims", str(folder / "claims")]
        if large:
            command += ["--first" if number == 0 else "--leave", *large]
        environment = dict(os.environ)
        gpus = torch.cuda.device_count()
        if gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        processors = sorted(os.sched_getaffinity(0))
        own = processors[number * len(processors) // count : (number + 1) * len(processors) // count] or processors
        self.process = subprocess.Popen(["taskset", "-c", ",".join(map(str, own)), *command], env=environment)


def _ended(lanes: Sequence[_Lane], end_s: float | None) -> list[int]:
    """The exit codes. Interrupted or out of time, lanes are ended; what they have written stays."""
    deadline = None if end_s is None else time.monotonic() + end_s
    try:
        for lane in lanes:
            with suppress(subprocess.TimeoutExpired):
                lane.process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    finally:
        for lane in lanes:
            lane.process.kill()
            lane.process.wait()
    return [lane.process.returncode for lane in lanes]


if __name__ == "__main__":
    sys.exit(main())
