"""``kevolve``: warm the store offline, look into it, measure, and see what the machine can do.

Every command takes ``--json``. Exit codes: 0 as asked, 1 not (something is cold, corrupt, missing or withheld), 2 wrong
usage, or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..exc import KevolveError, SettingsError
from . import cache
from .shared import settings_of, show

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry point. Library errors become one line on stderr and exit code 2."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        return command(arguments)
    except KevolveError as error:
        print(f"kevolve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kevolve: interrupted; what was found so far is kept", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kevolve", description=__doc__.splitlines()[0] if __doc__ else None)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON value instead of text")
    shared.add_argument("--store", type=Path, help="the store's folder (default: the kevolve.store setting)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    warm = commands.add_parser("warm", parents=[shared], help="search every region of a model and remember the kernels")
    warm.add_argument("factory", metavar="MODULE_OR_FILE:FACTORY", help="returns a module or callable and its inputs")
    warm.add_argument("--train", action="store_true", help="also run a backward pass")
    warm.add_argument("--search", choices=("quick", "full"), default="full")
    warm.add_argument("--budget-s", type=float, help="seconds of search per graph")
    warm.set_defaults(command=_warm)

    cache.add_commands(commands.add_parser("cache", help="look into the store, share it, tidy it up"), shared)

    bench = commands.add_parser("bench", help="measure against eager, Inductor and max-autotune")
    bench.add_argument("suite", choices=("longtail",))
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of the suite (try --help)")
    bench.set_defaults(command=_bench)

    doctor = commands.add_parser("doctor", parents=[shared], help="what this machine can do")
    doctor.set_defaults(command=_doctor)
    return parser


# --- warm ---


def _warm(arguments: argparse.Namespace) -> int:
    from .. import report
    from ..warm import warm

    settings = settings_of(arguments, search=arguments.search, budget_s=arguments.budget_s)
    function, inputs = _made(arguments.factory)
    with report.progress_bar():
        warm(function, inputs, settings, train=arguments.train)
    run = report.last_run()
    cold = [row.title for row in run.regions if row.verdict.startswith("left: budget") or "could not" in row.verdict]
    summary = f"\n{len(run.regions)} regions, {run.searched} searched now, {len(cold)} still cold"
    show(arguments, {**run.to_json(), "cold": cold}, run.format_table() + summary)
    return 1 if cold else 0


def _made(name: str) -> tuple[Any, tuple[Any, ...]]:
    """Call ``MODULE_OR_FILE:FACTORY``. Raises ``SettingsError`` that says which part of the name does not work."""
    where, colon, attribute = name.rpartition(":")
    if not colon:
        raise SettingsError(f"{name!r} is not MODULE_OR_FILE:FACTORY")
    module = _module(where)
    factory = vars(module).get(attribute)
    if not callable(factory):
        found = ", ".join(sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")))
        raise SettingsError(f"{where} has no function {attribute!r}; it has: {found or 'none'}")
    made = factory()
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        raise SettingsError(f"{attribute}() must return (module or callable, example inputs)")
    function, inputs = made
    return function, tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs,)


def _module(where: str) -> Any:
    path = Path(where)
    if path.suffix != ".py":
        sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise SettingsError(f"no module {where!r}: {error}") from error
    if not path.is_file():
        raise SettingsError(f"no file {where}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# --- bench, doctor ---


def _bench(arguments: argparse.Namespace) -> int:
    # The suites are scripts beside the package, not part of it: they need a checkout.
    try:
        suite = importlib.import_module(f"benchmarks.{arguments.suite}")
    except ModuleNotFoundError:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        try:
            suite = importlib.import_module(f"benchmarks.{arguments.suite}")
        except ModuleNotFoundError as error:
            raise SettingsError("the benchmarks are run from a checkout of the project") from error
    return int(suite.main(arguments.rest))


def _doctor(arguments: argparse.Namespace) -> int:
    from ..report.doctor import examine, format_findings

    findings = examine(settings_of(arguments))
    show(arguments, findings, format_findings(findings))
    return 0 if any(found["available"] for found in findings["platforms"].values()) else 1
