"""Runs a kernel once per input and does nothing else on the device: ``python -m …launcher CASE FINISHED``.

``CASE`` is a file with a case as JSON. The names of the inputs that were run are added to the file ``FINISHED``, one a
line. Inputs are made on the CPU and copied as bytes, since a sanitizer would follow every other kernel as well.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from ...platforms import executor_for
from ..inputs import generate, named
from .tool import Case, bytes_of


def launch_all(case: Case, finished: Path) -> None:
    """Until the case's time has passed. Raises what building and running the kernel raises."""
    executor = executor_for(case.setup.platform)
    compiled = executor.load(case.kernel, case.region, Path(case.setup.folder))
    end = time.monotonic() + case.limit_s
    for name in case.inputs:
        symbols = named(name, case.workload)[1].symbols
        made = generate(case.region, case.workload, name, case.setup.seed, torch.device("cpu"))
        inputs = [_copied(tensor, executor.device) for tensor in made]
        outputs = [executor.allocation(spec, symbols)() for spec in case.region.output_specs]
        compiled(inputs, outputs, [symbols[symbol] for symbol in case.region.symbol_names])
        executor.synchronize()
        with finished.open("a") as file:
            file.write(f"{name}\n")
        if time.monotonic() > end:
            return


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    first = tensor.storage_offset() * tensor.element_size()
    return bytes_of(tensor)[first:].to(device).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


def main() -> None:
    launch_all(Case.from_json(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
