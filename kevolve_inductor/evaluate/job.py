"""What travels between the evaluator and its worker processes: one JSON object a line, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..graph.region import Region, Workload
from ..kernel import Kernel
from .isolation import MEMORY_SHARE

if TYPE_CHECKING:
    from ..graph.swap import Swap

Role = Literal["bench", "referee"]


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told once, at its start. ``threads`` of 0 leaves the number to torch.

    A ``quiet`` worker's threads sleep while they have nothing to do instead of spinning, which would disturb what another
    worker measures. A ``builder`` only compiles and never touches the device. A ``spare`` loads ahead what its sessions
    will need, since nobody waits for it. ``memory_share`` is what the worker may take
    of the memory that is free when it starts; whoever starts it puts that in ``memory_bytes``.
    """

    platform: str
    folder: str
    threads: int
    seed: int
    tf32: bool = False
    quiet: bool = False
    builder: bool = False
    spare: bool = False
    memory_share: float = MEMORY_SHARE
    memory_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerSetup:
        return cls(**data)


@dataclass(frozen=True)
class OpenJob:
    """Start a session. The bench builds and times the baselines not in ``skip``; the referee only remembers the region.

    ``later`` puts the baselines off until a ``BaselinesJob``, as when a lost process is replaced.
    """

    name: ClassVar[str] = "open"
    role: Role
    region: Region
    workload: Workload
    skip: tuple[str, ...] = ()
    later: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "region": self.region.to_json(),
            "workload": self.workload.to_json(),
            "skip": self.skip,
            "later": self.later,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OpenJob:
        region, workload = Region.from_json(data["region"]), Workload.from_json(data["workload"])
        return cls(data["role"], region, workload, tuple(data["skip"]), data["later"])


@dataclass(frozen=True)
class BaselinesJob:
    """Build and time the session's baselines, if that has not been done in this process."""

    name: ClassVar[str] = "baselines"

    def to_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BaselinesJob:
        return cls()


@dataclass(frozen=True)
class RestJob:
    """Forget the session and give back the device's memory; there may be another one later."""

    name: ClassVar[str] = "rest"

    def to_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RestJob:
        return cls()


@dataclass(frozen=True)
class RunJob:
    """Run a kernel, guarded, on one distribution of inputs and write its outputs to the file ``outputs``."""

    name: ClassVar[str] = "run"
    kernel: Kernel
    distribution: str
    outputs: str

    def to_json(self) -> dict[str, Any]:
        return {"kernel": self.kernel.to_json(), "distribution": self.distribution, "outputs": self.outputs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunJob:
        return cls(Kernel.from_json(data["kernel"]), data["distribution"], data["outputs"])


@dataclass(frozen=True)
class JudgeJob:
    """Compare what a run wrote to ``outputs``; ``None`` where the kernel reported an index out of range."""

    name: ClassVar[str] = "judge"
    distribution: str
    outputs: str | None

    def to_json(self) -> dict[str, Any]:
        return {"distribution": self.distribution, "outputs": self.outputs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JudgeJob:
        return cls(data["distribution"], data["outputs"])


@dataclass(frozen=True)
class ApplyJob:
    """Ask the referee whether eager accepts the inputs of that name."""

    name: ClassVar[str] = "apply"
    distribution: str

    def to_json(self) -> dict[str, Any]:
        return {"distribution": self.distribution}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ApplyJob:
        return cls(data["distribution"])


@dataclass(frozen=True)
class TimeJob:
    """Time a kernel that was found correct; ``max_error`` and ``build_s`` go into the evaluation.

    ``decide_at``: the speedup that the measurement has to be sure about, if any.
    """

    name: ClassVar[str] = "time"
    kernel: Kernel
    max_error: float
    build_s: float
    decide_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        numbers = {"max_error": self.max_error, "build_s": self.build_s, "decide_at": self.decide_at}
        return {"kernel": self.kernel.to_json(), **numbers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TimeJob:
        return cls(Kernel.from_json(data["kernel"]), data["max_error"], data["build_s"], data["decide_at"])


@dataclass(frozen=True)
class ProfileJob:
    """Look closer at a kernel that passed."""

    name: ClassVar[str] = "profile"
    kernel: Kernel

    def to_json(self) -> dict[str, Any]:
        return {"kernel": self.kernel.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProfileJob:
        return cls(Kernel.from_json(data["kernel"]))


@dataclass(frozen=True)
class GraphJob:
    """Compile a whole graph with and without ``swaps``, compare and time; with ``mode``, in that mode of Inductor's too.

    ``modules`` are imported first: they define operators of the graph.
    """

    name: ClassVar[str] = "graph"
    graph: Region
    workload: Workload
    swaps: tuple[Swap, ...]
    mode: str | None = None
    modules: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        swaps = [swap.to_json() for swap in self.swaps]
        graph, workload = self.graph.to_json(), self.workload.to_json()
        return {
            "graph": graph, "workload": workload, "swaps": swaps, "mode": self.mode, "modules": self.modules,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphJob:
        # Loads Inductor, which only the few workers that meet a graph need.
        from ..graph.swap import Swap

        swaps = tuple(Swap.from_json(swap) for swap in data["swaps"])
        graph, workload = Region.from_json(data["graph"]), Workload.from_json(data["workload"])
        return cls(graph, workload, swaps, data["mode"], tuple(data["modules"]))


@dataclass(frozen=True)
class CrossJob:
    """Compile a Triton kernel for ``target`` (``"sm_90"``, ``"gfx942"``), which need not be here."""

    name: ClassVar[str] = "cross"
    kernel: Kernel
    region: Region
    target: str

    def to_json(self) -> dict[str, Any]:
        return {"kernel": self.kernel.to_json(), "region": self.region.to_json(), "target": self.target}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CrossJob:
        return cls(Kernel.from_json(data["kernel"]), Region.from_json(data["region"]), data["target"])


BenchJob = RunJob | TimeJob | ProfileJob
Job = OpenJob | BaselinesJob | RestJob | RunJob | JudgeJob | ApplyJob | TimeJob | ProfileJob | GraphJob | CrossJob

_JOBS: Mapping[str, type[Any]] = {
    job.name: job
    for job in (OpenJob, BaselinesJob, RestJob, RunJob, JudgeJob, ApplyJob, TimeJob, ProfileJob, GraphJob, CrossJob)
}


def job_to_json(job: Job, limit_s: float) -> dict[str, Any]:
    return {"job": job.name, "limit_s": limit_s, "data": job.to_json()}


def job_from_json(message: Mapping[str, Any]) -> Job:
    """Raises ``KeyError``, ``TypeError`` or ``ValueError`` on anything but what ``job_to_json`` wrote."""
    job: Job = _JOBS[message["job"]].from_json(message["data"])
    return job
