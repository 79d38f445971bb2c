"""An evaluation in a few sentences, for people and for prompts: what happened, why, and whose figures say so."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any, assert_never

from ..platforms.profile import Profile
from .causes import cause_of
from .evaluation import (
    BuildFailed,
    Compiled,
    Crashed,
    Diagnosis,
    Evaluation,
    Limiter,
    Mismatch,
    Passed,
    Refused,
    ResourceFailed,
    TimedOut,
)

_LIMITERS: Mapping[Limiter, str] = {
    "memory": "Limited by memory traffic",
    "compute": "Limited by arithmetic",
    "latency": "Limited by waiting: neither memory nor arithmetic is used well",
    "launch": "Limited by launching: it takes no longer than a few launches do",
    "occupancy": "Limited by occupancy: too few warps are resident, or values spill, so that waiting is not hidden",
    "load imbalance": "Limited by load imbalance: processors are idle while others still work",
    "unknown": "What limits it is not known",
}


def explain(evaluation: Evaluation) -> str:
    """One paragraph without line breaks, but for a compiler's own message."""
    match evaluation:
        case Passed():
            screened = "" if evaluation.complete else " (only screened)"
            faster = f"{evaluation.speedup:.2f} times as fast as {evaluation.best_baseline}{screened}"
            return f"Right; {evaluation.latency_us:.1f} µs, {faster}. {explain_diagnosis(evaluation.diagnosis)}"
        case BuildFailed():
            place = "" if evaluation.line is None else f" in line {evaluation.line}"
            return f"Does not compile: {evaluation.stage}{place}: {evaluation.message}"
        case ResourceFailed():
            times = f", {evaluation.needed / evaluation.available:.2f} times that" if evaluation.available else ""
            limit = f"needs {evaluation.needed:,} where {evaluation.available:,} are available"
            return f"Over the limit of {evaluation.resource}: {limit}{times}."
        case Mismatch():
            return _explain_mismatch(evaluation)
        case Crashed():
            return f"{_crash(evaluation.signal)}: {evaluation.message}"
        case TimedOut():
            return f"Takes longer than {evaluation.limit_s:g} s: an endless loop, or work that grows too fast."
        case Refused():
            return f"Refused by the check {evaluation.check!r}: {evaluation.message}"
        case Compiled():
            figures = {
                "registers": evaluation.registers,
                "spills": evaluation.spills,
                "bytes shared": evaluation.shared_bytes,
            }
            share = "" if evaluation.occupancy is None else f", occupancy at most {evaluation.occupancy:.0%}"
            return f"Compiles for {evaluation.target}:{_listed(figures)}{share}; not run."
        case _:
            assert_never(evaluation)


def _crash(number: int | None) -> str:
    if number is None:
        return "Fails at run time"
    known = {member.value: f" ({member.name})" for member in signal.Signals}
    return f"Ends its process with signal {number}{known.get(number, '')}"


def _explain_mismatch(mismatch: Mismatch) -> str:
    cause = mismatch.likely_cause or cause_of(mismatch.check, mismatch.pattern)
    where = f", {mismatch.place}" if mismatch.place and mismatch.wrong_elements < mismatch.total_elements else ""
    count = f"{mismatch.wrong_elements} of {mismatch.total_elements} elements, " if mismatch.wrong_elements else ""
    worst = (
        f" The worst at {mismatch.worst_index} is off by {mismatch.worst_error:.3g}." if mismatch.worst_error else ""
    )
    wrong = f"Wrong ({mismatch.check}) in output {mismatch.output} on {mismatch.inputs!r} inputs"
    likely = f" Likely cause: {cause}." if cause else ""
    return f"{wrong}: {count}{mismatch.pattern}{where}.{worst}{likely}"


def explain_diagnosis(diagnosis: Diagnosis) -> str:
    """What limits the kernel, with the figures that there are and where they come from."""
    rates = f"{diagnosis.achieved_bytes_per_s / 1e9:.4g} GB/s and {diagnosis.achieved_flops_per_s / 1e9:.4g} GFLOP/s"
    sentences = [f"{_LIMITERS[diagnosis.limiter]}; {rates}, {diagnosis.ceiling_share:.0%} of the ceiling."]
    report = {
        "registers": diagnosis.registers,
        "spills": diagnosis.spills,
        "bytes shared": diagnosis.shared_bytes,
    }
    possible = ""
    if diagnosis.occupancy is not None:
        possible = f", occupancy at most {diagnosis.occupancy:.0%} because of {diagnosis.occupancy_limit}"
    if _listed(report) or possible:
        sentences.append(f"The compiler reports{_listed(report)}{possible}.")
    if diagnosis.profile is not None:
        sentences += _explain_profile(diagnosis.profile)
    return f"{' '.join(sentences)} (From: {diagnosis.source}.)"


def _listed(figures: Mapping[str, int | None]) -> str:
    known = [f"{value} {name}" for name, value in figures.items() if value is not None]
    return f" {', '.join(known)}" if known else ""


_PROFILE: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("parallel_efficiency", lambda share: f"the threads' time is used to {share:.0%}"),
    ("idle_share", lambda share: f"processors are idle for {share:.0%} of the time while others work"),
    ("memory_share", lambda share: f"memory is used to {share:.0%}"),
    ("compute_share", lambda share: f"arithmetic units are used to {share:.0%}"),
    ("memory_bytes", lambda count: f"{count / 1e6:.4g} MB go to and from memory"),
    ("occupancy", lambda share: f"{share:.0%} of the possible warps are resident"),
    ("waves", lambda count: f"the grid is {count:.2f} waves"),
    ("launches", lambda count: f"{count} launches"),
    ("vector_bits", lambda bits: f"vectors of {bits} bits" if bits else "no vector arithmetic"),
    ("vector_share", lambda share: f"{share:.0%} of the floating-point work in vectors"),
    ("stack_stores", lambda count: f"{count} vector registers stored to the stack"),
    ("cache_misses", lambda count: f"{count:.3g} cache misses"),
    ("branch_misses", lambda count: f"{count:.3g} mispredicted branches"),
    ("page_faults", lambda count: f"{count:.3g} page faults"),
)


def _explain_profile(profile: Profile) -> list[str]:
    """The figures by their source, then what warps wait for, then the sources that had nothing."""
    by_source: dict[str, list[str]] = {}
    for name, words in _PROFILE:
        if name in profile.sources:
            by_source.setdefault(profile.sources[name], []).append(words(getattr(profile, name)))
    if profile.instructions and profile.cycles:
        each = f"{profile.instructions / profile.cycles:.2f} instructions a cycle"
        by_source.setdefault(profile.sources["cycles"], []).append(each)
    sentences = [f"By {source}: {', '.join(figures)}." for source, figures in by_source.items()]
    if profile.stalls:
        waits = ", ".join(f"{words} ({share:.0%})" for words, share in profile.stalls.items())
        sentences.append(f"Warps wait for {waits}.")
    return sentences + [f"No {source}: {reason}." for source, reason in profile.missing.items()]
