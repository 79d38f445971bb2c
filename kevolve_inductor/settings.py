"""What the user chooses. This is the only module that reads the environment.

Every setting is given as option ``kevolve.x``, else as environment variable ``KEVOLVE_X``, else by its default.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from .exc import SettingsError, UnknownSettingError

Search = Literal["off", "lookup", "quick", "full"]
Numerics = Literal["strict", "eager_tf32"]
IsolationLevel = Literal["none", "limits", "offline", "confined"]
Number = TypeVar("Number", int, float)

OPTION_PREFIX = "kevolve."
ENVIRONMENT_PREFIX = "KEVOLVE_"
DEFAULT_BUDGETS_S: Mapping[str, float] = {"off": 0.0, "lookup": 0.0, "quick": 60.0, "full": 1800.0}
SYNTHESIZERS = ("families",)

_WORDS_FOR_TRUE = ("1", "true", "yes", "on")
_WORDS_FOR_FALSE = ("0", "false", "no", "off")

# A worker gets what compilers, drivers and allocators need, and nothing a stranger's kernel should be able to read.
_WORKER_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONPATH", "CC", "CXX"}
)
_WORKER_PREFIXES = ("CUDA", "TRITON", "TORCHINDUCTOR", "OMP_", "GOMP_", "KMP_", "MKL_", "XDG_", "HIP_", "ROC")
_SEARCHED_FOLDERS = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "ROCM_PATH", "ROCM_HOME", "HIP_PATH")
# Where Inductor, Triton and the CUDA driver keep what they have compiled.
CACHE_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSW", "CREDENTIAL", "KEY", "AUTH")
# glibc maps large blocks afresh on every allocation, and the page faults would then be part of every measured call.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": "1073741824"}


@dataclass(frozen=True)
class Settings:
    """Checked values. Raises ``SettingsError`` on a value outside a setting's allowed set.

    ``budget_s`` and ``trials`` bound the search of one compile, ``fuel`` the number of swaps; ``None`` means the
    search mode's own limit, or none. ``inductor_mode`` is Inductor's ``mode`` for everything that is not swapped.
    ``isolation`` is the level (see ``evaluate.isolation``) below which kernels that others than this package's own
    families wrote are not run.
    """

    search: Search = "quick"
    budget_s: float | None = None
    trials: int | None = None
    store: Path = field(default_factory=lambda: default_store(os.environ))
    trust: tuple[str, ...] = ("local",)
    min_speedup: float = 1.02
    numerics: Numerics = "strict"
    inductor_mode: str | None = None
    synthesizer: tuple[str, ...] = ("families",)
    isolation: IsolationLevel = "confined"
    report: Path | None = None
    seed: int = 0
    fuel: int | None = None
    strict: bool = False
    enabled: bool = True

    def __post_init__(self) -> None:
        for name, parse in _PARSERS.items():
            object.__setattr__(self, name, _parsed(name, OPTION_PREFIX + name, getattr(self, name), parse))

    @classmethod
    def resolve(
        cls,
        options: Mapping[str, Any] | None,
        mode: str | None,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[Settings, dict[str, Any]]:
        """The settings, and the options that are Inductor's own, untouched.

        Raises ``UnknownSettingError`` on a ``kevolve.`` option or ``KEVOLVE_`` variable that does not exist, and
        ``SettingsError`` on a value that cannot be used, or on two different modes for Inductor.
        """
        environment = os.environ if environment is None else environment
        ours, rest = _split(options or {})
        values = _from_environment(environment)
        values |= {name: _parsed(name, OPTION_PREFIX + name, value, _PARSERS[name]) for name, value in ours.items()}
        if mode is not None:
            values["inductor_mode"] = _one_mode(mode, values["inductor_mode"] if "inductor_mode" in ours else None)
        if "search" not in values and _several_ranks(environment):
            values["search"] = "lookup"
        values.setdefault("store", default_store(environment))
        return cls(**values), rest

    @property
    def effective_budget_s(self) -> float:
        """Seconds this compile may search for each graph; 0 where it may not search at all."""
        if not self.searching:
            return 0.0
        return DEFAULT_BUDGETS_S[self.search] if self.budget_s is None else self.budget_s

    @property
    def active(self) -> bool:
        """Whether anything at all may differ from plain Inductor."""
        return self.enabled and self.search != "off"

    @property
    def searching(self) -> bool:
        return self.enabled and self.search in ("quick", "full")

    def fingerprint(self) -> dict[str, Any]:
        """The settings that influence which kernels are chosen, as a JSON value."""
        return {
            "active": self.active,
            "fuel": self.fuel,
            "min_speedup": self.min_speedup,
            "numerics": self.numerics,
            "synthesizer": list(self.synthesizer),
            "trust": list(self.trust),
        }


def default_store(environment: Mapping[str, str]) -> Path:
    """``kevolve`` in the user's cache directory. The store creates it when first opened, readable by the user only."""
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that a relative path is invalid and to be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "kevolve"


def worker_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for worker processes: toolchain, drivers and threads, no secrets; an allocator that times evenly.

    A variable that is not listed above does not reach a worker, nor does one whose name speaks of a secret.
    """
    environment = os.environ if environment is None else environment
    return {name: value for name, value in environment.items() if _for_worker(name)} | _ALLOCATOR


def compiler_candidates(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """C++ compilers to try, in order: ``$CXX`` where set, then ``g++``, then ``clang++``."""
    environment = os.environ if environment is None else environment
    chosen = environment.get("CXX", "").strip()
    return tuple(dict.fromkeys(name for name in (chosen, "g++", "clang++") if name))


def tool_folders(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Folders in which the environment names programs and libraries; of one called ``bin`` the folder above it."""
    environment = os.environ if environment is None else environment
    named = [Path(name) for variable in _SEARCHED_FOLDERS for name in environment.get(variable, "").split(os.pathsep)]
    named += [
        Path(environment.get(variable, "").split(" ")[0]).parent for variable in ("CC", "CXX", "TRITON_PTXAS_PATH")
    ]
    return tuple(path.parent if path.name == "bin" else path for path in named if path.is_absolute())


def cache_folders(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Folders that the environment gives to compilers for what they keep."""
    environment = os.environ if environment is None else environment
    return tuple(Path(environment[name]) for name in CACHE_VARIABLES if name in environment)


def interpret_triton(environment: Mapping[str, str] | None = None) -> bool:
    """Whether Triton was asked to interpret kernels on the CPU (``TRITON_INTERPRET``)."""
    environment = os.environ if environment is None else environment
    return environment.get("TRITON_INTERPRET", "").strip().lower() in _WORDS_FOR_TRUE


def _for_worker(name: str) -> bool:
    if any(word in name.upper() for word in _SECRET_WORDS):
        return False
    return name in _WORKER_NAMES or name.startswith(_WORKER_PREFIXES)


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    ours: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in options.items():
        if not key.startswith(OPTION_PREFIX):
            rest[key] = value
            continue
        name = key.removeprefix(OPTION_PREFIX)
        if name not in _PARSERS:
            raise _unknown(key, tuple(OPTION_PREFIX + valid for valid in _PARSERS))
        ours[name] = value
    return ours, rest


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {ENVIRONMENT_PREFIX + name.upper(): name for name in _PARSERS}
    values: dict[str, Any] = {}
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable not in names:
            raise _unknown(variable, tuple(names))
        text = environment[variable].strip()
        # In a shell, "X= command" is how one unsets a variable for one command.
        if text:
            name = names[variable]
            values[name] = _parsed(name, variable, text, _PARSERS[name])
    return values


def _unknown(name: str, valid: tuple[str, ...]) -> UnknownSettingError:
    closest = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return UnknownSettingError(name, valid, closest[0] if closest else None)


def _one_mode(mode: str, option: str | None) -> str | None:
    named = _parsed("inductor_mode", "mode", mode, _PARSERS["inductor_mode"])
    if option is not None and option != named:
        raise SettingsError(f"mode={mode!r} and kevolve.inductor_mode={option!r} name two modes for Inductor: give one")
    result: str | None = named
    return result


def _several_ranks(environment: Mapping[str, str]) -> bool:
    """Whether this is one rank of several: ranks that searched on their own could choose different kernels."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size() > 1
    world_size = environment.get("WORLD_SIZE", "").strip()
    return world_size.isdecimal() and int(world_size) > 1


# Parsers take an option's value or a variable's text. They raise ``ValueError`` whose text is the allowed set.


def _parsed(name: str, label: str, value: Any, parse: Callable[[Any], Any]) -> Any:
    if value is None and name in _OPTIONAL:
        return None
    try:
        return parse(value)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{label}={value!r} cannot be used: it must be {error}") from error


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return str(value)

    return parse


def _real(lowest: float) -> Callable[[Any], float]:
    allowed = f"a finite number that is at least {lowest:g}"

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(allowed)
        number = _or_raise(float, value, allowed)
        if not (math.isfinite(number) and number >= lowest):
            raise ValueError(allowed)
        return number

    return parse


def _integer(lowest: int | None) -> Callable[[Any], int]:
    allowed = "an integer" if lowest is None else f"an integer that is at least {lowest}"

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(allowed)
        number = _or_raise(int, value, allowed)
        if lowest is not None and number < lowest:
            raise ValueError(allowed)
        return number

    return parse


def _or_raise(convert: Callable[[Any], Number], value: Any, allowed: str) -> Number:
    try:
        return convert(value)
    except (ValueError, OverflowError):
        raise ValueError(allowed) from None


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _WORDS_FOR_TRUE + _WORDS_FOR_FALSE:
        raise ValueError(f"True or False (in text one of {', '.join(_WORDS_FOR_TRUE + _WORDS_FOR_FALSE)})")
    return word in _WORDS_FOR_TRUE


def _folder(value: Any) -> Path:
    if isinstance(value, str) and "://" in value:
        raise ValueError("a folder: this version supports only folders, no URLs")
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        raise ValueError("a folder")
    return Path(value).expanduser().absolute()


def _words(value: Any, allowed: tuple[str, ...] | None = None) -> tuple[str, ...]:
    expected = "one or more names, as a sequence or separated by commas"
    if allowed is not None:
        expected = f"one or more of {', '.join(allowed)}, as a sequence or separated by commas"
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        raise ValueError(expected)
    words = tuple(part.strip() if isinstance(part, str) else "" for part in parts)
    if not words or not all(words) or (allowed is not None and not set(words) <= set(allowed)):
        raise ValueError(expected)
    return words


def _inductor_mode(value: Any) -> str:
    # Imported on demand: only a mode that was really given is worth loading Inductor for.
    from torch._inductor import list_mode_options

    modes = list_mode_options()
    return _one_of(*sorted({"default", *modes}))(value)


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "search": _one_of("off", "lookup", "quick", "full"),
    "budget_s": _real(0.0),
    "trials": _integer(0),
    "store": _folder,
    "trust": _words,
    # Below 1 a kernel that is slower than its baseline could be taken.
    "min_speedup": _real(1.0),
    "numerics": _one_of("strict", "eager_tf32"),
    "inductor_mode": _inductor_mode,
    "synthesizer": lambda value: _words(value, SYNTHESIZERS),
    "isolation": _one_of("none", "limits", "offline", "confined"),
    "report": _folder,
    "seed": _integer(None),
    "fuel": _integer(0),
    "strict": _boolean,
    "enabled": _boolean,
}
_OPTIONAL = frozenset({"budget_s", "trials", "inductor_mode", "report", "fuel"})

SETTING_NAMES = tuple(setting.name for setting in fields(Settings))
