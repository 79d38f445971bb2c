"""Writes the generated parts of README.md from the measurements under benchmarks/results/.

python tools/readme.py            rewrite the parts between the markers
python tools/readme.py --check    exit code 1 where they are not what the measurements say
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {name}: written by tools/readme.py -->", "<!-- end of {name} -->"

NOTHING = "No measurement is stored yet."

Document = dict[str, Any]


def main(argv: list[str]) -> int:
    text = README.read_text()
    current = generate(text, RESULTS)
    if "--check" in argv:
        if text != current:
            print("README.md is out of date: run python tools/readme.py", file=sys.stderr)
        return int(text != current)
    README.write_text(current)
    return 0


def generate(text: str, results: Path) -> str:
    """``text`` with its generated parts made anew from the JSON files in ``results``."""
    documents = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    for name, part in PARTS.items():
        text = replace_part(text, name, part(newest_by_chip(documents, name)))
    return text


def replace_part(text: str, name: str, content: str) -> str:
    """Raises ``ValueError`` where the markers of the part are missing."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"README.md has no part {name!r} between {begin!r} and {end!r}")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def newest_by_chip(documents: list[Document], benchmark: str) -> list[Document]:
    """The latest measurement of each chip, GPUs first."""
    newest: dict[str, Document] = {}
    for document in sorted((d for d in documents if d["benchmark"] == benchmark), key=lambda d: str(d["date"])):
        newest[document["chip"]] = document
    return sorted(newest.values(), key=lambda d: (d["device"] != "cuda", d["chip"]))


def longtail_part(documents: list[Document]) -> str:
    return "\n\n".join(longtail_table(document) for document in documents) or NOTHING


def longtail_table(document: Document) -> str:
    versions = document["versions"]
    autotuned = any("max_autotune" in row["times_us"] for row in document["cases"])
    names = ["eager", "inductor", *(["max_autotune"] if autotuned else []), "kevolve"]
    titles = ["eager", "Inductor", *(["max-autotune"] if autotuned else []), "kevolve"]
    lines = [
        f"**{document['chip']}**, torch {versions['torch']}, triton {versions['triton']}, {document['date']}; milliseconds",
        "",
        "| case | floor | " + " | ".join(titles) + " | speedup | of the ceiling | search |",
        "|---|" + "---:|" * (len(titles) + 4),
    ]
    lines += [longtail_row(row, names) for row in document["cases"]]
    if document["geomean_speedup"]:
        lines += ["", f"{geomeans(document)}{longest_compile(document)}"]
    return "\n".join(lines)


def geomeans(document: Document) -> str:
    """Of all cases, and where they are told apart, of those that came with the design and of their variations."""
    text = f"Geometric mean of the speedups: {document['geomean_speedup']:.2f}×"
    by_origin = document.get("geomean_by_origin", {})
    if {"table", "variation"} <= by_origin.keys():
        text += (
            f"; of the cases whose times came with the design {by_origin['table']:.2f}×, of their variations, in italics,"
            f" {by_origin['variation']:.2f}×"
        )
    return f"{text}."


def longest_compile(document: Document) -> str:
    compiled = [row for row in document["cases"] if "compile_s" in row and row["trials"]]
    if not compiled:
        return ""
    longest = max(compiled, key=lambda row: float(row["compile_s"]))
    return (
        f" The longest compile with its search from an empty store: {longest['compile_s']:.0f} s ({longest['name']})."
    )


def longtail_row(row: Document, names: list[str]) -> str:
    title = row["name"] if row["origin"] == "table" else f"*{row['name']}*"
    title += f", {row['date']}" if "date" in row else ""
    if row["error"]:
        return f"| {title} | failed: {row['error'].splitlines()[0][:80]} |" + " |" * (len(names) + 3)
    times = [milliseconds(row["times_us"].get(name)) for name in names]
    search = f"{row['search_s']:.0f} s, {row['trials']} trials" if row["trials"] else "none"
    figures = [milliseconds(row["floor_us"]), *times, f"{row['speedup']:.2f}×", f"{row['ceiling_share']:.0%}", search]
    return f"| {title} | " + " | ".join(figures) + " |"


def quickstart_part(documents: list[Document]) -> str:
    lines = ["| whole model, milliseconds | eager | Inductor | kevolve | over Inductor |", "|---|---:|---:|---:|---:|"]
    for document in documents:
        times = document["times_us"]
        figures = [milliseconds(times[name]) for name in ("eager", "inductor", "kevolve")]
        ratio = times["inductor"] / times["kevolve"]
        title = f"{document['chip']}, {document['rows']} rows, {document['date']}"
        lines.append(f"| {title} | " + " | ".join(figures) + f" | {ratio:.2f}× |")
    return "\n".join(lines) if documents else NOTHING


def compile_part(documents: list[Document]) -> str:
    lines = [
        "| compile, seconds | Inductor | kevolve, warm | ratio | swapped | look-up |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for document in documents:
        for name, row in document["models"].items():
            look_up = f"{max(row['look_ups_us']) / 1e3:.1f} ms" if row["look_ups_us"] else "–"
            figures = [
                f"{row['inductor_s']:.1f}",
                f"{row['kevolve_s']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['swapped']}",
            ]
            lines.append(
                f"| {name}, {document['chip']}, {document['date']} | " + " | ".join([*figures, look_up]) + " |"
            )
    return "\n".join(lines) if documents else NOTHING


def random_part(documents: list[Document]) -> str:
    return "\n\n".join(random_table(document) for document in documents) or NOTHING


def random_table(document: Document) -> str:
    """One line a family, then all of them."""
    counts = document["summary"]
    lines = [
        f"**{document['chip']}**, {document['date']}, at most {document['budget_s']:.0f} s of search a case",
        "",
        "| family | shapes | with kernels | speedup | of those with kernels | swapped at a loss | differ from eager "
        "| candidates found wrong |",
        "|---|" + "---:|" * 7,
    ]
    lines += [random_row(name, family) for name, family in counts["families"].items()]
    return "\n".join([*lines, random_row("**all**", counts)])


def random_row(title: str, counts: Document) -> str:
    figures = [
        f"{counts['cases']}",
        f"{counts['swapped']}",
        ratio(counts["geomean_speedup"]),
        ratio(counts["geomean_swapped"]),
        f"{len(counts['losing'])}",
        f"{len(counts['disagreeing'])}",
        f"{sum(counts['wrong'].values())} of {counts['trials']}",
    ]
    return f"| {title} | " + " | ".join(figures) + " |"


def curve_part(documents: list[Document]) -> str:
    return "\n\n".join(curve_table(document) for document in documents) or NOTHING


def curve_table(document: Document) -> str:
    lines = [
        f"**{document['chip']}**, {document['date']}, microseconds",
        "",
        "| features | floor | Inductor | max-autotune | kevolve | speedup | taken |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in document["cases"]:
        features = row["name"].rpartition("-")[2]
        if row["error"]:
            lines.append(f"| {features} | failed: {row['error'].splitlines()[0][:80]} | | | | | |")
            continue
        times = row["times_us"]
        shown = [row["floor_us"], times["inductor"], times.get("max_autotune"), times["kevolve"]]
        figures = ["–" if time_us is None else f"{time_us:.0f}" for time_us in shown]
        taken = "kernel" if row["swapped"] else "Inductor"
        lines.append(f"| {features} | " + " | ".join([*figures, f"{row['speedup']:.2f}×", taken]) + " |")
    return "\n".join(lines)


def quick_full_part(documents: list[Document]) -> str:
    return "\n\n".join(quick_full_table(document) for document in documents) or NOTHING


def quick_full_table(document: Document) -> str:
    done = [row for row in document["cases"] if not row["error"]]
    full = "longer" if document.get("unsanitized") else "full"
    lines = [
        f"**{document['chip']}**, {document['date']}; over the faster of eager and Inductor; compile and search in seconds",
        "",
        f"| case | quick ({document['quick_s']:.0f} s) | {full} ({document['full_s']:.0f} s) | reached | first compile "
        f"| with the {full} search | from the store |",
        "|---|" + "---:|" * 6,
    ]
    for row in done:
        speedups = [f"{row['speedups'][name]:.2f}×" for name in ("quick", "full")]
        seconds = [f"{row[name]['compile_s']:.0f}" for name in ("quick", "full", "warm")]
        lines.append(f"| {row['name']} | " + " | ".join([*speedups, f"{row['reached']:.0%}", *seconds]) + " |")
    if done:
        longest = document["longest_s"]
        lines += [
            "",
            f"In the median a quick search reaches {document['reached']:.0%} of a {full} one. The longest first compile took "
            f"{longest['quick']:.0f} s with the quick search, {longest['full']:.0f} s with the {full} one, "
            f"{longest['warm']:.0f} s from the store, which searched {document['warm_searches']} regions.",
        ]
    return "\n".join(lines)


PARTS: Mapping[str, Callable[[list[Document]], str]] = {
    "longtail": longtail_part,
    "random": random_part,
    "curve": curve_part,
    "quick-full": quick_full_part,
    "quickstart": quickstart_part,
    "compile": compile_part,
}


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def milliseconds(time_us: float | None) -> str:
    if time_us is None:
        return "–"
    return f"{time_us / 1e3:.3f}" if time_us < 1e4 else f"{time_us / 1e3:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
