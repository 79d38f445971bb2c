"""Every exception this package raises on purpose.

KevolveError
├── SettingsError          an option or environment variable that cannot be used
│   └── UnknownSettingError
├── PlatformError          the machine cannot do what was asked
│   ├── CompilerMissingError
│   ├── BuildError         a compiler refused a kernel's text
│   └── ResourceError      a built kernel, or a region's evaluation, needs more than the target has
├── GateError              kernel text outside the allow-listed subset
├── EmissionError          a family cannot write a kernel for this schedule
├── UnsupportedError       a structure the expression language cannot hold (becomes a rejection)
├── StoreError             the store cannot be read or written
│   ├── CorruptEntryError
│   └── BundleError        a file that cannot be imported
├── WorkerError            the evaluation machinery (not a candidate) failed
├── UndecidedError         the machine is too noisy to decide about a region now
├── SwapError              a kernel could not be put into the graph
└── KernelIndexError       a swapped kernel met an index out of range (as eager would raise)

A candidate's failure is data (``evaluate.evaluation``), never one of these.
"""

from __future__ import annotations


class KevolveError(Exception):
    """Root of the tree. Instances survive pickling: fields are passed through ``args``."""


class SettingsError(KevolveError, ValueError):
    """A setting has a value that cannot be used."""


class UnknownSettingError(SettingsError):
    """A ``kevolve.`` option that does not exist; lists the valid ones and the closest match."""

    def __init__(self, name: str, valid: tuple[str, ...], closest: str | None) -> None:
        super().__init__(name, valid, closest)
        self.name, self.valid, self.closest = name, valid, closest

    def __str__(self) -> str:
        hint = f" Did you mean {self.closest!r}?" if self.closest else ""
        return f"unknown setting {self.name!r}.{hint} Valid settings: {', '.join(self.valid)}"


class PlatformError(KevolveError):
    """The platform lacks something that was asked of it."""


class CompilerMissingError(PlatformError):
    """No usable C++ compiler; the message says which were tried."""


class BuildError(PlatformError):
    """A compiler refused the text. ``line`` counts in the kernel's source, ``None`` where the place is unknown."""

    def __init__(self, stage: str, message: str, line: int | None = None) -> None:
        super().__init__(stage, message, line)
        self.stage, self.message, self.line = stage, message, line

    def __str__(self) -> str:
        place = f", line {self.line}" if self.line is not None else ""
        return f"{self.stage}{place}: {self.message}"


class ResourceError(PlatformError):
    """A kernel that builds but needs more of ``resource`` than one block may have, or a region that does not fit in memory."""

    def __init__(self, resource: str, needed: int, available: int) -> None:
        super().__init__(resource, needed, available)
        self.resource, self.needed, self.available = resource, needed, available

    def __str__(self) -> str:
        return f"needs {self.needed} of {self.resource}, {self.available} available"


class GateError(KevolveError):
    """Kernel text uses a construct outside the allow-list."""

    def __init__(self, construct: str, line: int) -> None:
        super().__init__(construct, line)
        self.construct, self.line = construct, line

    def __str__(self) -> str:
        return f"line {self.line}: {self.construct} is not allowed in a kernel"


class EmissionError(KevolveError):
    """A schedule that a family cannot express; the searcher treats it as a failed candidate."""


class StoreError(KevolveError):
    """The store's folder cannot be used."""


class CorruptEntryError(StoreError):
    """A stored object whose content does not match its digest or schema."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class BundleError(StoreError):
    """An exported file that does not verify; nothing of it is imported. ``member`` is the part that is wrong."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(member, reason)
        self.member, self.reason = member, reason

    def __str__(self) -> str:
        return f"nothing was imported: {self.member}: {self.reason}"


class WorkerError(KevolveError):
    """The evaluation worker could not be started or answered out of protocol."""


class UndecidedError(KevolveError):
    """The timings of a region's best kernels scatter too much for a verdict; nothing is remembered of it."""


class SwapError(KevolveError):
    """A chosen kernel could not be inserted into the graph."""


class KernelIndexError(KevolveError, IndexError):
    """Raised at run time where eager would raise ``IndexError``."""


class UnsupportedError(KevolveError):
    """A structure that cannot be expressed; discovery turns it into a typed rejection with the same code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message
