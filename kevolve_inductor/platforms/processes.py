"""Ending what was started."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import Any


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that was started in a session of its own, and with it whatever it started. May be called twice."""
    # The group outlives its leader. Inside a worker there is none: a worker has one group for all that it starts.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
