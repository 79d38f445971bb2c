"""A kernel in a process that a profiler watches: ``python -m kevolve_inductor.evaluate.profile REQUEST``.

``REQUEST`` is a file of JSON that :func:`watch` wrote. Only kernels that were found right in the workers' isolation get
here; this process is as open as the user's own, in which such a kernel runs next, since profilers could not reach it
otherwise.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

import kevolve_inductor

from .. import settings
from ..kernel import Kernel
from ..platforms import executor_for
from ..platforms.platform import Platform
from ..platforms.profile import Profile
from .job import OpenJob, WorkerSetup
from .sessions import BenchSession


def watch(platform: Platform, request: Path, setup: WorkerSetup, session: OpenJob, kernel: Kernel) -> Profile:
    """What the platform's profiler sees of one call of ``kernel`` with the inputs of ``session``. Takes seconds.

    What the new process has to know is left in the file ``request``.
    """
    parts = {"setup": setup.to_json(), "session": replace(session, later=True).to_json(), "kernel": kernel.to_json()}
    request.write_text(json.dumps(parts))
    environment = settings.worker_environment()
    package = str(Path(kevolve_inductor.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    return platform.watch([sys.executable, "-P", "-m", __name__, str(request)], environment)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    setup = WorkerSetup.from_json(request["setup"])
    if setup.threads:
        torch.set_num_threads(setup.threads)
    executor = executor_for(setup.platform)
    session = BenchSession(OpenJob.from_json(request["session"]), setup.seed, executor, Path(setup.folder))
    session.show(Kernel.from_json(request["kernel"]))


if __name__ == "__main__":
    main()
