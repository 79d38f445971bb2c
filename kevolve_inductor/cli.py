"""``kevolve``: warm the store offline, look into it, measure, and see what the machine can do.

Every command takes ``--json``. Exit codes: 0 as asked, 1 not (something is cold, corrupt or missing), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cache.entry import Entry
from .cache.key import differences
from .cache.store import Store
from .evaluate.evaluation import Passed, from_json
from .evaluate.explain import explain, explain_diagnosis
from .exc import KevolveError, SettingsError
from .report.outcomes import outcomes
from .settings import Settings

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

    cache = commands.add_parser("cache", help="look into the store").add_subparsers(required=True, metavar="ACTION")
    listing = cache.add_parser("ls", parents=[shared], help="one line per region")
    listing.set_defaults(command=_cache_ls)
    show = cache.add_parser("show", parents=[shared], help="one region: evidence, schedule and the kernel's source")
    show.add_argument("key", help="a cache key or the beginning of one")
    show.set_defaults(command=_cache_show)
    why = cache.add_parser("why", parents=[shared], help="why a verdict, or how two keys differ")
    why.add_argument("key")
    why.add_argument("other", nargs="?", help="a second key: print the fields that differ")
    why.set_defaults(command=_cache_why)
    verify = cache.add_parser("verify", parents=[shared], help="read everything back and check every digest")
    verify.set_defaults(command=_cache_verify)

    bench = commands.add_parser("bench", help="measure against eager, Inductor and max-autotune")
    bench.add_argument("suite", choices=("longtail",))
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of the suite (try --help)")
    bench.set_defaults(command=_bench)

    doctor = commands.add_parser("doctor", parents=[shared], help="what this machine can do")
    doctor.set_defaults(command=_doctor)
    return parser


def _settings(arguments: argparse.Namespace, **options: Any) -> Settings:
    given = {f"kevolve.{name}": value for name, value in options.items() if value is not None}
    if arguments.store is not None:
        given["kevolve.store"] = arguments.store
    return Settings.resolve(given, None)[0]


def _print(arguments: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, indent=1, default=str) if arguments.json else text)


# --- warm ---


def _warm(arguments: argparse.Namespace) -> int:
    from . import report
    from .warm import warm

    settings = _settings(arguments, search=arguments.search, budget_s=arguments.budget_s)
    function, inputs = _made(arguments.factory)
    with report.progress_bar():
        warm(function, inputs, settings, train=arguments.train)
    run = report.last_run()
    cold = [row.title for row in run.regions if row.verdict.startswith("left: budget") or "could not" in row.verdict]
    summary = f"\n{len(run.regions)} regions, {run.searched} searched now, {len(cold)} still cold"
    _print(arguments, {**run.to_json(), "cold": cold}, run.format_table() + summary)
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


# --- cache ---


def _opened(arguments: argparse.Namespace) -> Store:
    return Store.open(_settings(arguments).store)


def _entry(store: Store, beginning: str) -> Entry:
    matches = [entry for entry in store.entries() if entry.key.startswith(beginning)]
    if len(matches) != 1:
        raise SettingsError(f"{len(matches)} keys begin with {beginning!r}; `kevolve cache ls` lists them")
    return matches[0]


def _speedup(entry: Entry) -> float | None:
    return entry.evaluation.get("speedup") if entry.evaluation else None


def _cache_ls(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    entries = sorted(store.entries(), key=lambda entry: entry.created)
    rows = [
        {"key": e.key, "verdict": e.verdict, "speedup": _speedup(e), "trials": e.trials, "title": e.title}
        for e in entries
    ]
    lines = [f"{store.path}: {len(rows)} regions"]
    for e in entries:
        ratio = f"{_speedup(e):6.2f}×" if e.verdict == "kernel" else "      –"
        lines.append(f"{e.key[:12]}  {e.verdict:8}  {ratio}  {e.trials:4} trials  {e.title}")
    _print(arguments, rows, "\n".join(lines))
    return 0


def _cache_show(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    entry = _entry(store, arguments.key)
    kernel = store.kernel(entry.kernel) if entry.kernel else None
    text = [_evidence(entry)]
    if kernel is not None:
        text += [f"\nkernel {kernel.digest[:12]} ({kernel.language})", kernel.source.strip()]
    value = {**asdict(entry), "kernel_source": kernel.to_json() if kernel else None}
    _print(arguments, value, "\n".join(text))
    return 0


def _cache_why(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    entry = _entry(store, arguments.key)
    if arguments.other is None:
        trials = outcomes(store.trials(entry.key))
        value = {"verdict": entry.verdict, "evaluation": entry.evaluation, "trials": trials}
        _print(arguments, value, "\n".join([_evidence(entry), *trials]))
        return 0
    found = differences(entry.key_fields, _entry(store, arguments.other).key_fields)
    text = "\n".join(f"{name}: {left!r} / {right!r}" for name, (left, right) in found.items()) or "equal"
    _print(arguments, found, text)
    return 0


def _evidence(entry: Entry) -> str:
    lines = [f"{entry.title}", f"key      {entry.key}", f"verdict  {entry.verdict}"]
    lines.append(f"searched {entry.trials} trials in {entry.search_s:.1f} s")
    best = from_json(entry.evaluation) if entry.evaluation else None
    if isinstance(best, Passed):
        times = ", ".join(f"{name} {time:.1f}" for name, time in sorted(best.baselines_us.items()))
        lines.append(f"kernel   {best.latency_us:.1f} µs (baselines: {times} µs)")
        lines.append(f"speedup  {best.speedup:.2f}×, at least {best.speedup_low:.2f}× with 95 % confidence")
        lines.append(f"because  {explain_diagnosis(best.diagnosis)}")
        lines += [f"checked  {name}: {outcome}" for name, outcome in best.sanitizers.items()]
    else:
        lines.append(f"best trial: {explain(best)}" if best else "no trial passed")
    if entry.schedule:
        lines.append("schedule " + ", ".join(f"{name}={value}" for name, value in sorted(entry.schedule.items())))
    return "\n".join(lines)


def _cache_verify(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    faults = store.verify()
    text = "\n".join(str(fault) for fault in faults) or f"{store.path}: everything verifies"
    _print(arguments, [{"path": fault.path, "reason": fault.reason} for fault in faults], text)
    return 1 if faults else 0


# --- bench, doctor ---


def _bench(arguments: argparse.Namespace) -> int:
    # The suites are scripts beside the package, not part of it: they need a checkout.
    try:
        suite = importlib.import_module(f"benchmarks.{arguments.suite}")
    except ModuleNotFoundError:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        try:
            suite = importlib.import_module(f"benchmarks.{arguments.suite}")
        except ModuleNotFoundError as error:
            raise SettingsError("the benchmarks are run from a checkout of the project") from error
    return int(suite.main(arguments.rest))


def _doctor(arguments: argparse.Namespace) -> int:
    from .report.doctor import examine, format_findings

    findings = examine(_settings(arguments))
    _print(arguments, findings, format_findings(findings))
    return 0 if any(found["available"] for found in findings["platforms"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
