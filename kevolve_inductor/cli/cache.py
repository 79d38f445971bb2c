"""``kevolve cache``: look into the store, check it, share what it holds, and remove what nobody needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..cache.bundle import import_bundle
from ..cache.entry import LOCAL, Entry
from ..cache.key import differences
from ..cache.store import Store
from ..cache.trust import how_to_trust, source_name, trusted
from ..evaluate.evaluation import Passed, from_json
from ..evaluate.explain import explain, explain_diagnosis
from ..exc import SettingsError
from ..export import evaluators, export
from ..report.outcomes import outcomes
from .shared import settings_of, show

_DAY_S = 86400.0


def add_commands(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    cache = parser.add_subparsers(required=True, metavar="ACTION")
    listing = cache.add_parser("ls", parents=[shared], help="one line per region")
    listing.set_defaults(command=_ls)
    one = cache.add_parser("show", parents=[shared], help="one region: evidence, schedule and the kernel's source")
    one.add_argument("key", help="a cache key or the beginning of one")
    one.set_defaults(command=_show)
    why = cache.add_parser("why", parents=[shared], help="why a verdict, or how two keys differ")
    why.add_argument("key")
    why.add_argument("other", nargs="?", help="a second key: print the fields that differ")
    why.set_defaults(command=_why)
    verify = cache.add_parser("verify", parents=[shared], help="read everything back and check every digest")
    verify.set_defaults(command=_verify)
    out = cache.add_parser(
        "export", parents=[shared], help="write kernels to a file, once sanitizers found nothing in them"
    )
    out.add_argument("file", type=Path)
    out.add_argument("keys", nargs="*", metavar="KEY", help="cache keys or beginnings (default: every trusted kernel)")
    out.set_defaults(command=_export)
    into = cache.add_parser(
        "import", parents=[shared], help="put an exported file's kernels into the store, not yet trusted"
    )
    into.add_argument("file", type=Path)
    into.add_argument("--source", type=_source, help="what to call where it comes from (default: by digest)")
    into.set_defaults(command=_import)
    collect = cache.add_parser("gc", parents=[shared], help="remove what no entry needs")
    collect.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="also remove entries and all else of that age"
    )
    collect.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    collect.set_defaults(command=_gc)


def _source(text: str) -> str:
    try:
        return source_name(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return days


def _opened(arguments: argparse.Namespace) -> Store:
    return Store.open(settings_of(arguments).store)


def _entry(store: Store, beginning: str) -> Entry:
    matches = [entry for entry in store.entries() if entry.key.startswith(beginning)]
    if len(matches) != 1:
        raise SettingsError(f"{len(matches)} keys begin with {beginning!r}; `kevolve cache ls` lists them")
    return matches[0]


def _speedup(entry: Entry) -> float | None:
    return entry.evaluation.get("speedup") if entry.evaluation else None


def _ls(arguments: argparse.Namespace) -> int:
    store, trust = _opened(arguments), settings_of(arguments).trust
    entries = sorted(store.entries(), key=lambda entry: entry.created)
    rows = [
        {
            "key": e.key,
            "verdict": e.verdict,
            "speedup": _speedup(e),
            "trials": e.trials,
            "title": e.title,
            "source": e.source,
            "trusted": trusted(e, trust),
        }
        for e in entries
    ]
    lines = [f"{store.path}: {len(rows)} regions"]
    for e in entries:
        ratio = f"{_speedup(e):6.2f}×" if e.verdict == "kernel" else "      –"
        lines.append(f"{e.key[:12]}  {e.verdict:8}  {ratio}  {e.trials:4} trials  {e.title}{_origin(e, trust)}")
    show(arguments, rows, "\n".join(lines))
    return 0


def _origin(entry: Entry, trust: Sequence[str]) -> str:
    if entry.source == LOCAL:
        return "" if trusted(entry, trust) else "  (not trusted)"
    return f"  (from {entry.source}{'' if trusted(entry, trust) else ', not trusted'})"


def _show(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    entry = _entry(store, arguments.key)
    kernel = store.kernel(entry.kernel) if entry.kernel else None
    text = [_evidence(entry)]
    if not trusted(entry, settings_of(arguments).trust):
        text.append(f"not trusted: {how_to_trust(entry)}")
    if kernel is not None:
        text += [f"\nkernel {kernel.digest[:12]} ({kernel.language})", kernel.source.strip()]
    value = {**asdict(entry), "kernel_source": kernel.to_json() if kernel else None}
    show(arguments, value, "\n".join(text))
    return 0


def _why(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    entry = _entry(store, arguments.key)
    if arguments.other is None:
        trials = outcomes(store.trials(entry.key))
        value = {"verdict": entry.verdict, "evaluation": entry.evaluation, "trials": trials}
        show(arguments, value, "\n".join([_evidence(entry), *trials]))
        return 0
    found = differences(entry.key_fields, _entry(store, arguments.other).key_fields)
    text = "\n".join(f"{name}: {left!r} / {right!r}" for name, (left, right) in found.items()) or "equal"
    show(arguments, found, text)
    return 0


def _evidence(entry: Entry) -> str:
    lines = [f"{entry.title}", f"key      {entry.key}", f"verdict  {entry.verdict}", f"source   {entry.source}"]
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


def _verify(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    faults = store.verify()
    text = "\n".join(str(fault) for fault in faults) or f"{store.path}: everything verifies"
    show(arguments, [{"path": fault.path, "reason": fault.reason} for fault in faults], text)
    return 1 if faults else 0


def _export(arguments: argparse.Namespace) -> int:
    store, trust = _opened(arguments), settings_of(arguments).trust
    chosen = [_entry(store, key) for key in arguments.keys] or [e for e in store.entries() if trusted(e, trust)]
    done = export(store, [entry for entry in chosen if entry.kernel], arguments.file, evaluators(store))
    lines = [f"{arguments.file}: {len(done.entries)} kernels, sha256 {done.sha256}"] if done.sha256 else []
    lines += [f"not exported: {one.entry.key[:12]}  {one.entry.title}: {one.reason}" for one in done.withheld]
    if any(one.faulty for one in done.withheld):
        lines.append("what a sanitizer found faulty is not used here any more either")
    value = {
        "file": str(arguments.file),
        "sha256": done.sha256,
        "exported": [entry.key for entry in done.entries],
        "withheld": [
            {"key": one.entry.key, "title": one.entry.title, "reason": one.reason, "faulty": one.faulty}
            for one in done.withheld
        ],
    }
    show(arguments, value, "\n".join(lines) or f"{store.path} holds no kernels to export; `kevolve warm` finds some")
    return 0 if done.sha256 and not done.withheld else 1


def _import(arguments: argparse.Namespace) -> int:
    store, trust = _opened(arguments), settings_of(arguments).trust
    done = import_bundle(store, arguments.file, arguments.source)
    lines = [
        f"{store.path}: {len(done.added)} kernels added from {done.source!r}, {len(done.replaced)} replaced, "
        f"{len(done.kept)} left out since this store has verdicts of its own"
    ]
    if done.source not in trust:
        lines.append(f"they do not run yet: add {done.source!r} (or single keys) to the setting trust, e.g. "
                     f"KEVOLVE_TRUST={','.join((*trust, done.source))}")  # fmt: skip
    show(arguments, {**asdict(done), "trusted": done.source in trust}, "\n".join(lines))
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    store = _opened(arguments)
    older_s = None if arguments.older_than is None else arguments.older_than * _DAY_S
    removals = store.collect(older_s, dry_run=arguments.dry_run)
    freed = sum(removal.size_bytes for removal in removals)
    said = "would be removed" if arguments.dry_run else "removed"
    lines = [f"{removal.name}: {removal.reason}" for removal in removals] if arguments.dry_run else []
    lines.append(f"{store.path}: {len(removals)} files {said}, {freed / 2**20:.1f} MiB")
    value = {"dry_run": arguments.dry_run, "bytes": freed, "files": [asdict(removal) for removal in removals]}
    show(arguments, value, "\n".join(lines))
    return 0
