"""What a worker cannot do, and what becomes of one that tries."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

import kevolve_inductor
from kevolve_inductor import settings
from kevolve_inductor.evaluate.client import WorkerEvaluator
from kevolve_inductor.evaluate.evaluation import Compiled, Refused, ResourceFailed
from kevolve_inductor.evaluate.footprint import needed_bytes
from kevolve_inductor.evaluate.isolation import Isolation, Level
from kevolve_inductor.evaluate.job import OpenJob, RunJob, WorkerSetup
from kevolve_inductor.evaluate.process import Died, WorkerProcess, WorkerSlot
from kevolve_inductor.exc import ResourceError
from kevolve_inductor.kernel import Argument, Kernel, Launch, Workspace
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.free_memory import free_memory_bytes
from kevolve_inductor.platforms.hip import HipPlatform
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE, row_sum_kernel, row_sum_region, row_sum_workload

PACKAGE = Path(kevolve_inductor.__file__).parent.parent
INTRUDER = Path(__file__).with_name("intruder.py")
NOBODY = 65534
PATIENCE_S = 20.0


# --- what the kernel refuses -----------------------------------------------------------------------------------------


@contextmanager
def service(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        yield


def intrude(level, folder, *user):
    """What the intruder came to at ``level``: its isolation, and its outcomes by kind and name."""
    inside, outside = folder / "inside", folder / "outside"
    for path in (folder, inside, outside):
        path.mkdir(exist_ok=True)
    for path in (outside / "secret", outside / "removable"):
        path.write_text("for nobody else")
    with service(outside / "service"):
        for path in (folder, inside, outside, *outside.iterdir()):
            path.chmod(0o777)
        command = [sys.executable, str(INTRUDER), level.name, str(inside), str(outside), *map(str, user)]
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return Isolation.from_json(found["isolation"]), found["outcomes"]


@pytest.fixture(scope="module", params=["this user", "ordinary user"])
def intrusions(request):
    """By level. A superuser's attempts are made as an ordinary user as well."""
    user = [NOBODY] if request.param == "ordinary user" else []
    if user and os.geteuid() != 0:
        pytest.skip("this user is an ordinary one")
    # Pytest's own temporary folders lie in one that nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="kevolve-intrusions-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield {level: intrude(level, folder / level.name, *user) for level in Level}


@pytest.mark.parametrize("level", [Level.LIMITS, Level.OFFLINE, Level.CONFINED])
def test_what_a_level_refuses_fails_there_and_above_and_works_without(intrusions, level):
    _, without = intrusions[Level.NONE]
    kind = level.name.lower()
    possible = [name for name, outcome in without[kind].items() if outcome == "done"]
    assert len(possible) > len(without[kind]) / 2, f"what this user may do tells little: {without[kind]}"
    for tried in (at for at in Level if at >= level):
        reached, outcomes = intrusions[tried]
        if reached.level < level:
            pytest.skip(f"this kernel lacks it: {', '.join(reached.missing)}")
        assert not [name for name in possible if outcomes[kind][name] == "done"], tried


def test_processes_outside_get_no_signals(intrusions):
    reached, outcomes = intrusions[Level.CONFINED]
    if reached != Isolation(Level.CONFINED, ()):
        pytest.skip(f"this kernel lacks it: {', '.join(reached.missing)}")
    assert outcomes["signals"] == {"kill another": "EPERM"}


def test_what_workers_need_works_at_every_level(intrusions):
    _, without = intrusions[Level.NONE]
    for _, outcomes in intrusions.values():
        assert outcomes["allowed"] == without["allowed"]
    assert "done" in without["allowed"].values()


LACKING = """
import json
from kevolve_inductor.evaluate.isolation import levels as isolation
def absent(*given):
    raise OSError(38, "Function not implemented")
def idle(*given):
    pass
isolation.{step} = {instead}
print(json.dumps(isolation.isolate(isolation.Level.CONFINED, (), (), 2**20).to_json()))
"""


@pytest.mark.parametrize(
    ("step", "instead", "level", "reason"),
    [
        ("refuse_system_calls", "absent", Level.LIMITS, "seccomp: Function not implemented"),
        ("refuse_system_calls", "idle", Level.LIMITS, "seccomp: the kernel accepts it without effect"),
        ("restrict_files", "idle", Level.OFFLINE, "Landlock: the kernel accepts it without effect"),
    ],
)
def test_what_does_not_hold_is_not_counted(step, instead, level, reason):
    command = [sys.executable, "-c", LACKING.format(step=step, instead=instead)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    reached = Isolation.from_json(json.loads(done.stdout))
    assert reached.level <= level and reason in reached.missing


def test_levels_have_the_names_of_the_setting_and_survive_their_journey():
    assert get_args(settings.IsolationLevel) == tuple(level.name.lower() for level in Level)
    for level in Level:
        isolation = Isolation(level, ("Landlock: not there",))
        assert Isolation.from_json(json.loads(json.dumps(isolation.to_json()))) == isolation


# --- workers ---------------------------------------------------------------------------------------------------------

# Stands before a package that every worker imports once it is isolated, tries things, and makes way for the package.
STAND_IN = """
    import importlib, json, os, subprocess, sys
    from pathlib import Path
    stray = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    found = {"stray": stray.pid, "environment": dict(os.environ), "folder": os.getcwd()}
    Path("found").write_text(json.dumps(found))
    BODY
    sys.path.remove(HERE)
    del sys.modules["filelock"]
    sys.modules["filelock"] = importlib.import_module("filelock")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Plants code in workers."""

    def plant(body=""):
        place = tmp_path / "planted"
        place.mkdir()
        text = textwrap.dedent(STAND_IN).replace("HERE", repr(str(place))).replace("BODY", textwrap.dedent(body))
        (place / "filelock.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(place))

    return plant


def setup(folder, **fields):
    return WorkerSetup("cpu", str(folder / "build"), 1, 0, **fields)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ended(processes):
    """Whether all end within a few seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_running, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def group_of(leader):
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getpgid(int(entry)) == leader:
                found.add(int(entry))
        except ProcessLookupError:
            continue
    return found


def test_a_worker_has_no_secrets_a_folder_of_its_own_and_takes_what_it_started_along(tmp_path, monkeypatch, stand_in):
    monkeypatch.setenv("SERVICE_TOKEN", "geheim")
    stand_in()
    open_before = len(os.listdir("/proc/self/fd"))
    worker = WorkerProcess(setup(tmp_path), tmp_path / "log")
    try:
        assert isinstance(worker.isolation(), Isolation)
        found = json.loads((tmp_path / "log-work" / "found").read_text())
        assert found["folder"] == str(tmp_path / "log-work")
        assert found["environment"]["TMPDIR"] != tempfile.gettempdir()
        assert "geheim" not in str(found["environment"])
        assert is_running(found["stray"])
    finally:
        worker.kill()
    # Where the kernel cannot keep it in the group, it ends when its time comes.
    assert ended([found["stray"]]) or worker.isolation().level < Level.OFFLINE
    assert len(os.listdir("/proc/self/fd")) == open_before


USER = """
import os, sys, time
from pathlib import Path
from kevolve_inductor.evaluate.job import WorkerSetup
from kevolve_inductor.evaluate.process import WorkerProcess
folder = Path(sys.argv[1])
os.environ["PYTHONPATH"] = sys.argv[2]
worker = WorkerProcess(WorkerSetup("cpu", str(folder / "build"), 1, 0), folder / "log")
worker.isolation()
print("up", flush=True)
time.sleep(1000)
"""


def test_no_worker_and_nothing_it_started_outlives_the_users_process(tmp_path, stand_in):
    stand_in()
    command = [sys.executable, "-c", USER, str(tmp_path), os.environ["PYTHONPATH"]]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as user:
        try:
            assert user.stdout.readline() == "up\n"
            stray = json.loads((tmp_path / "log-work" / "found").read_text())["stray"]
            group = group_of(os.getpgid(stray))
        finally:
            user.send_signal(signal.SIGKILL)
    assert len(group) >= 3, "the warden, the worker and the stray process"
    assert ended(group)


def test_a_worker_that_does_not_come_up_confined_does_with_less_and_says_so(tmp_path, stand_in):
    outside = tmp_path / "driver"
    outside.write_text("")
    stand_in(f"open({str(outside)!r}).close()")
    with closing(WorkerSlot(setup(tmp_path), tmp_path / "log")) as slot:
        reached = slot.isolation()
        assert slot.open(OpenJob("referee", row_sum_region(), row_sum_workload()), 60.0) == {}
    assert reached.level < Level.CONFINED
    assert any("PermissionError" in reason for reason in reached.missing)


@pytest.mark.gpu
def test_a_gpus_driver_comes_up_confined(tmp_path):
    with closing(WorkerSlot(replace(setup(tmp_path), platform="cuda"), tmp_path / "log")) as slot:
        assert slot.isolation() == Isolation(Level.CONFINED, ()), (tmp_path / "log").read_text()


def test_a_worker_that_closes_its_pipe_has_died(tmp_path, stand_in):
    # Once asked to open a session, from a thread, as code in the worker would.
    stand_in("""
        import threading, time
        def close():
            time.sleep(0.5)
            os.closerange(3, 100)
            time.sleep(1000)
        threading.Thread(target=close, daemon=True).start()
    """)
    worker = WorkerProcess(setup(tmp_path), tmp_path / "log")
    worker.isolation()
    time.sleep(1.0)
    start = time.monotonic()
    assert isinstance(worker.ask(OpenJob("referee", row_sum_region(), row_sum_workload()), 60.0), Died)
    assert time.monotonic() - start < PATIENCE_S


# --- candidates ------------------------------------------------------------------------------------------------------


def hoarding_kernel():
    """The right results, with a workspace of 16 GB."""
    right = row_sum_kernel(
        ROW_SUM_SOURCE.replace("float* __restrict out)", "float* __restrict out, float* __restrict held)")
    )
    launch = replace(right.launches[0], arguments=(*right.launches[0].arguments, Argument("workspace", 0)))
    return replace(right, launches=(launch,), workspaces=(Workspace("float32", "4000000000"),))


def test_a_kernel_that_takes_all_memory_is_judged_and_the_next_one_too(tmp_path):
    # Enough for torch and this region; a small part of what the kernel asks for.
    share = 1.5 * 2**30 / free_memory_bytes()
    session = OpenJob("bench", row_sum_region(), row_sum_workload(), ("eager", "inductor"), later=True)
    with closing(WorkerSlot(setup(tmp_path, memory_share=share), tmp_path / "log")) as slot:
        assert slot.open(session, 60.0) == {}
        died = slot.ask(RunJob(hoarding_kernel(), "normal", str(tmp_path / "build" / "outputs")), 60.0)
        assert isinstance(died, Died)
        judged = died.evaluation()
        assert isinstance(judged, ResourceFailed), died
        assert judged.needed > judged.available
        ran = slot.ask(RunJob(row_sum_kernel(), "normal", str(tmp_path / "build" / "outputs")), 60.0)
        assert isinstance(ran, dict) and ran["raised"] is False


def test_a_region_that_does_not_fit_is_a_reason_before_any_search(tmp_path):
    region = row_sum_region()
    wide = replace(region.inputs[0], shape=(500, 10**9), stride=(10**9, 1))
    with WorkerEvaluator(CpuPlatform(), tmp_path) as evaluator:
        with pytest.raises(ResourceError) as caught:
            evaluator.open(replace(region, inputs=(wide,)), row_sum_workload())
        assert caught.value.needed > 2 * 10**12 > caught.value.available


def test_so_is_one_that_leaves_the_referee_no_room(tmp_path, monkeypatch):
    def opened(_, job, limit_s):
        full = {"error": "the region does not fit in memory", "needed_bytes": 8, "allowed_bytes": 4}
        return full if job.role == "referee" else {"times_us": {}, "failures": {}}

    monkeypatch.setattr(WorkerSlot, "open", opened)
    monkeypatch.setattr(WorkerSlot, "start", lambda _: None)
    with WorkerEvaluator(CpuPlatform(), tmp_path) as evaluator, pytest.raises(ResourceError) as caught:
        evaluator.open(row_sum_region(), row_sum_workload())
    assert (caught.value.needed, caught.value.available) == (8, 4)


def test_the_estimate_of_memory_grows_with_the_region():
    small = needed_bytes(row_sum_region(), {})
    assert small > 2 * 4 * 500 * 100
    half = replace(row_sum_region().inputs[0], dtype="float16")
    assert needed_bytes(replace(row_sum_region(), inputs=(half,)), {}) < small


TRITON_COPY = """
@triton.jit
def copy(x, out):
    at = tl.program_id(0)
    tl.store(out + at, tl.load(x + at))
"""


def test_kernels_from_outside_are_refused_below_the_level_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    kernel = Kernel("triton", TRITON_COPY, (Launch("copy", (Argument("input", 0), Argument("output", 0)), ("500",)),))
    monkeypatch.setattr(WorkerSlot, "isolation", lambda slot: Isolation(Level.LIMITS, ("seccomp: not there",)))
    with WorkerEvaluator(HipPlatform("gfx942"), tmp_path, limit_s=60.0) as evaluator:
        evaluator.open(row_sum_region("cuda"), row_sum_workload())
        assert isinstance(evaluator.evaluate(kernel), Compiled)
        refused = evaluator.evaluate(kernel, outside=True)
        assert isinstance(refused, Refused) and refused.check == "isolation"
        assert "'confined'" in refused.message and "seccomp: not there" in refused.message
    with WorkerEvaluator(HipPlatform("gfx942"), tmp_path, limit_s=60.0, isolation=Level.LIMITS) as lenient:
        lenient.open(row_sum_region("cuda"), row_sum_workload())
        assert isinstance(lenient.evaluate(kernel, outside=True), Compiled)
