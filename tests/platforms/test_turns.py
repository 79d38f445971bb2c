from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from kevolve_inductor.platforms import turns
from kevolve_inductor.platforms.turns import turn_on

_HOLD = """
import sys
from kevolve_inductor.platforms.turns import turn_on
with turn_on(sys.argv[1]) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def device(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "_SHARED", tmp_path)
    return f"test-{uuid.uuid4()}"


def test_a_turn_is_held_by_one_process(device, tmp_path):
    code = (
        f"from pathlib import Path; import kevolve_inductor.platforms.turns as t; t._SHARED = Path({str(tmp_path)!r})"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code + _HOLD, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    with turn_on(device, patience_s=0.05) as held:
        assert not held
    with turn_on(f"{device}-2", patience_s=0.05) as held:
        assert held
    other.kill()
    other.wait()
    with turn_on(device, patience_s=0.05) as held:
        assert held


_CONFINED = """
import sys
from pathlib import Path
from kevolve_inductor.evaluate.isolation import Level, grants, isolate
from kevolve_inductor.platforms.turns import turn_on
isolate(Level.CONFINED, grants.readable(), grants.writable(Path.cwd()), 2**20)
with turn_on(sys.argv[1]) as held:
    print(held)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="nothing is shared with confined workers")
def test_a_confined_worker_takes_turns(tmp_path):
    device = f"test-{uuid.uuid4()}"
    command = [sys.executable, "-c", _CONFINED, device]
    environment = {**os.environ, "PYTHONPATH": str(Path(turns.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    for left in Path("/dev/shm").glob(f"*{device}.lock"):
        left.unlink()
    assert done.stdout == "True\n", done.stderr


def test_after_an_error_the_turn_is_free(device):
    with pytest.raises(ValueError, match="kernel"), turn_on(device):
        raise ValueError("kernel")
    with turn_on(device, patience_s=0.0) as held:
        assert held


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_where_no_file_can_be_made_measuring_goes_on(device, tmp_path):
    tmp_path.chmod(0o500)
    with turn_on(device) as held:
        assert not held
