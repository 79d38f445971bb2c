"""Right kernels with one small thing wrong: does the judge notice?

``python -m tests.evaluate.mutants --count 1000`` judges that many and prints what survived. Like a finalist of a search, a
mutant is judged on at least 32 inputs. It is *killed* by a named check, *unbuildable* where the compiler refuses it, and
*the same code* where the compiler makes the same of it. What the judge lets pass is run on ten times as many inputs:
what one of those finds wrong *survived*; the others are *equivalent*, as far as anyone can tell from outside: their
results are no less accurate anywhere. All equivalent ones are listed in the report, since that is a claim.

What is not mutated, since it changes speed alone: directives (schedules, unrolling), how many elements deserve threads,
prefetches, alignments, hints to the optimiser, types' names. Equivalent, so far, were:

- a condition that only picks a fast way over a general one (``first + 16 <= inner``, ``numbers``, ``c + 1 < n``): the
  general way computes the same, and the fast one's condition may be stricter than it must be;
- the size of a block or of a tile on the stack, larger than needed or used in steps that need not be the whole block;
- which of two equal things is chosen: ``>`` for ``>=`` in a maximum's value, ``low < high`` for ``low != high``, ties of
  a selection that promises no order;
- a value that is never read: the initial value of what is assigned in every case, the sum of a row without elements
  that the inputs do not have, an element after the last one;
- another order of summing, or a shorter format for something that is exact in both.
"""

from __future__ import annotations

import argparse
import difflib
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import record
from benchmarks.clock import clock_for
from kevolve_inductor.evaluate.build import gate
from kevolve_inductor.evaluate.evaluation import BuildFailed, Crashed, Mismatch, Refused, TimedOut
from kevolve_inductor.evaluate.inputs import BROKEN, OUT_OF_RANGE, distributions_for, with_other_seeds
from kevolve_inductor.exc import KevolveError
from kevolve_inductor.graph.ranges import seen_range
from kevolve_inductor.graph.region import Region, Workload
from kevolve_inductor.kernel import Kernel
from kevolve_inductor.platforms.cpu import compile_cpp, generate_cpp
from kevolve_inductor.synthesis.families.bags import BagsFamily
from kevolve_inductor.synthesis.families.chains import ChainsFamily
from kevolve_inductor.synthesis.families.features import FeaturesFamily
from kevolve_inductor.synthesis.families.interaction import InteractionFamily
from kevolve_inductor.synthesis.families.jagged import JaggedFamily
from kevolve_inductor.synthesis.families.rows import ReductionFamily, RowFamily, worth
from kevolve_inductor.synthesis.families.scans import ScansFamily
from kevolve_inductor.synthesis.families.scatter import ScatterFamily
from kevolve_inductor.synthesis.families.stencils import StencilsFamily
from kevolve_inductor.synthesis.family import Family
from tests.evaluate.corpus import GROUNDS, UntimedJudge, build_all, honest
from tests.synthesis.family_checks import CPU, find, kernel_of, region_of, schedules_of, values_of

Outcome = Literal["killed", "unbuildable", "same code", "equivalent", "survived"]

# Inputs of each kind that a mutant which passed is run on before it is called equivalent.
_MORE_SEEDS = 30


@dataclass(frozen=True)
class Subject:
    """A right kernel with the region it is right for."""

    name: str
    region: Region
    workload: Workload
    kernel: Kernel


@dataclass(frozen=True)
class Mutant:
    subject: Subject
    kernel: Kernel
    operator: str

    def difference(self) -> str:
        before, after = (kernel.source.splitlines() for kernel in (self.subject.kernel, self.kernel))
        changed = [
            line for line in difflib.unified_diff(before, after, lineterm="", n=0) if line[:2] not in ("--", "++")
        ]
        return "\n".join([f"{self.subject.name}: {self.operator}", *changed])


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    outcome: Outcome
    reason: str


# --- what is mutated -------------------------------------------------------------------------------------------------


def corpus_subjects() -> list[Subject]:
    """The corpus' honest kernels, the plainest of each region first."""
    return [
        Subject(f"{h.ground}: {h.name}", GROUNDS[h.ground].region, GROUNDS[h.ground].workload, h.kernel)
        for h in honest()
    ]


def _router(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(torch.softmax(logits, dim=-1), 3)
    return weights, experts


def _extremes(values: Tensor) -> tuple[Tensor, ...]:
    return values.argmax(1), *values.min(1)


def _sorted(values: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.sort(values, dim=-1, stable=True))


def _padded(values: Tensor, offsets: Tensor) -> Tensor:
    position = torch.arange(12)
    index = (offsets[:-1, None] + position).clamp(max=values.shape[0] - 1)
    return torch.where(position < (offsets[1:] - offsets[:-1])[:, None], values[index], 0)


def _pooled(values: Tensor, offsets: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0)


def _features(values: Tensor, borders: Tensor, ids: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    mixed = ids * 2654435761
    hashed = ((mixed ^ (mixed >> 29)) & 0x7FFFFFFFFFFFFFFF) % 1009
    return torch.bucketize(values, borders), hashed, torch.log1p(counts.clamp(0, 500)), counts.clamp(-1, 3) * 0.5


def _interaction(rows: Tensor) -> Tensor:
    products = torch.bmm(rows, rows.transpose(1, 2))
    left, right = torch.tril_indices(rows.shape[1], rows.shape[1], offset=-1)
    return torch.cat([rows[:, 0], products[:, left, right]], dim=1)


def _running(values: Tensor) -> tuple[Tensor, ...]:
    return values.cumsum(0) * 0.5, values.cumsum(1)


def _jagged() -> list[Tensor]:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(0, 30, (600,)).cumsum(0)])
    return [torch.randn(int(offsets[-1])), offsets]


def _feature_inputs() -> list[Tensor]:
    ids = torch.randint(-(2**40), 2**40, (1300,))
    return [torch.randn(1300), torch.randn(21).sort().values, ids, torch.randint(-2, 900, (1300,)).float()]


def _bagged(ids: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    return functional.embedding_bag(ids, table, offsets, mode="mean")


def _bag_inputs() -> list[Tensor]:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(0, 9, (299,)).cumsum(0)])
    return [torch.randint(0, 80, (int(offsets[-1]) + 5,)), offsets, torch.randn(80, 24)]


def _scattered(values: Tensor, index: Tensor, added: Tensor) -> Tensor:
    return values.index_add(0, index, added)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.silu(functional.conv1d(functional.pad(x, (3, 0)), weight, bias, groups=x.shape[1]))


def _averaged(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 2, 1)


def _greatest(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 2, 1)


def _machine(x: Tensor) -> Tensor:
    return x.sum(1).square() - x.square().sum(1)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), weight, bias)


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target)


_PROGRAMS: Mapping[str, tuple[Family, Callable[..., Any], Callable[[], list[Tensor]]]] = {
    "router": (RowFamily(), _router, lambda: [torch.randn(48, 19)]),
    "extremes": (RowFamily(), _extremes, lambda: [torch.randn(40, 37)]),
    "sorted": (RowFamily(), _sorted, lambda: [torch.randn(40, 24)]),
    "padded": (JaggedFamily(), _padded, _jagged),
    "pooled": (JaggedFamily(), _pooled, _jagged),
    "features": (FeaturesFamily(), _features, _feature_inputs),
    "running": (ScansFamily(), _running, lambda: [torch.randn(70, 90)]),
    "interaction": (InteractionFamily(), _interaction, lambda: [torch.randn(33, 7, 20)]),
    "bagged": (BagsFamily(), _bagged, _bag_inputs),
    "scattered": (
        ScatterFamily(),
        _scattered,
        lambda: [torch.randn(40, 24), torch.randint(0, 40, (300,)), torch.randn(300, 24)],
    ),
    "convolved": (
        StencilsFamily(),
        _convolved,
        lambda: [torch.randn(2, 16, 99), torch.randn(16, 1, 4), torch.randn(16)],
    ),
    "averaged": (StencilsFamily(), _averaged, lambda: [torch.randn(2, 8, 33, 35)]),
    "greatest": (StencilsFamily(), _greatest, lambda: [torch.randn(2, 8, 33, 35)]),
    "machine": (ChainsFamily(), _machine, lambda: [torch.randn(64, 13, 24)]),
    "normalised": (ReductionFamily(), _normalised, lambda: [torch.randn(33, 70), torch.randn(70), torch.randn(70)]),
    "entropy": (ReductionFamily(), _entropy, lambda: [torch.randn(33, 90), torch.randint(0, 90, (33,))]),
}


@cache
def family_subjects(schedules: int = 1) -> list[Subject]:
    """Kernels of the families, with the default schedule and ``schedules - 1`` of the others."""
    torch.manual_seed(0)
    found = []
    for name, (family, function, inputs) in _PROGRAMS.items():
        # Their size is no matter here, as it is for what is worth a search.
        with patch.object(worth, "LEAST_ELEMENTS", 1):
            graph = find(family, function, inputs())
        for match in graph.matches:
            ranges = tuple(seen_range(value) for value in values_of(graph, match.inputs))
            kernels = [kernel_of(family, match, choice) for choice in schedules_of(family, match, CPU)[:schedules]]
            for kernel in {kernel.digest: kernel for kernel in kernels}.values():
                found.append(Subject(name, region_of(match), Workload((), ranges), kernel))
    return found


# --- mutation --------------------------------------------------------------------------------------------------------

# By name, what is looked for and what takes its place. Only one place is changed at a time.
_OPERATORS: Mapping[str, tuple[str, str]] = {
    "one more": (r"(?<![\w.'])(\d+)(?![\w.'])", "+1"),
    "one less": (r"(?<![\w.'])([1-9]\d*)(?![\w.'])", "-1"),
    "also equal": (r" ([<>]) ", r" \1= "),
    "not equal": (r" ([<>])= ", r" \1 "),
    "other direction": (r" < (?=\w+[;\s)])", " > "),
    "difference for sum": (r" \+ (?!=)", " - "),
    "sum for difference": (r"(?<=[\w)\]]) - ", " + "),
    "taken off": (r" \+= ", " -= "),
    "assigned": (r" [+|]= ", " = "),
    "sum for product": (r"(?<=[\w)\]]) \* (?=[\w(])", " + "),
    "swapped difference": (r"(\b\w+(?:\[\w+\])?) - (\w+(?:\[\w+\])?)", r"\2 - \1"),
    "swapped quotient": (r"(\b\w+(?:\[\w+\])?) / (\w+(?:\[\w+\])?)", r"\2 / \1"),
    "missing term": (r" \+ \w+(?:\[\w+\])?(?=[;,)\]])", ""),
    "missing factor": (r" \* \w+(?:\[\w+\])?(?=[;,)\] ])", ""),
    "either for both": (r" && ", " || "),
    "both for either": (r" \|\| ", " && "),
    "condition dropped": (r" \? ", " || true ? "),
    "condition refused": (r" \? ", " && false ? "),
    "maximum for minimum": (r"(?<=\W)min(?=[<(_])", "max"),
    "minimum for maximum": (r"(?<=\W)max(?=[<(_])", "min"),
    "unequal": (r" == ", " != "),
    "equal": (r" != ", " == "),
    "half precision": (r"\bfloat (?=\w+ = [^{])", "_Float16 "),
    "missing statement": (r"(?<=\s)[\w.]+\[[^\]]+\] [+-]?= [^;{]+;", ";"),
}
# Lines and parts of lines that change speed alone, or that only the compiler reads.
_LEFT_ALONE = re.compile(
    r"^\s*(#|//|template\b|typedef\b|using\b|static_assert\b|constexpr\b).*|//.*|if ?\(count >= [^)]*\)|"
    r"__builtin_(?:prefetch|expect)\([^;]*;|_mm_prefetch\([^;]*;|alignas\(\w+\)|vector_size\([^)]*\)|"
    # Whether a whole row of a jagged tensor lies within the values, so that the way without checks may be taken.
    r"^if \(\(\(low\d.*|"
    r"(?:int|float)\d*_t\b|__attribute__\(.*?\)\)|\[\[\w+\]\]|\b\w+<[\w, ]*>",
    re.MULTILINE,
)
# How an index out of range is noticed: nothing where the judge has no such inputs, as for offsets, which rise by contract.
_REPORTS = re.compile(r"^.*(?:\b(?:failed|bad) [|]?= |\bok\b|\bwrap\b).*$", re.MULTILINE)


def mutants_of(subject: Subject) -> Iterator[Mutant]:
    """Every mutant, in the order of the text."""
    source = subject.kernel.source
    idle = [found.span() for found in _LEFT_ALONE.finditer(source)]
    if not set(distributions_for(subject.region, subject.workload)) & set(OUT_OF_RANGE):
        idle += [found.span() for found in _REPORTS.finditer(source)]
    for operator, (pattern, new) in _OPERATORS.items():
        for found in re.finditer(pattern, source):
            start, end = found.span()
            if any(start < stop and begin < end for begin, stop in idle):
                continue
            text = str(int(found[0]) + int(new)) if new in ("+1", "-1") else found.expand(new)
            if text != found[0]:
                mutated = replace(subject.kernel, source=source[:start] + text + source[end:])
                yield Mutant(subject, mutated, operator)


def sample(subjects: Sequence[Subject], count: int, seed: int = 0) -> list[Mutant]:
    """``count`` mutants, or all there are: the subjects take turns, and so do the operators of each."""
    generator = random.Random(seed)
    pools = []
    for subject in subjects:
        by_operator: dict[str, list[Mutant]] = {}
        for mutant in mutants_of(subject):
            by_operator.setdefault(mutant.operator, []).append(mutant)
        queues = list(by_operator.values())
        for queue in queues:
            generator.shuffle(queue)
        generator.shuffle(queues)
        pools.append(
            [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
        )
    turns = range(max(map(len, pools), default=0))
    return [pool[turn] for turn in turns for pool in pools if turn < len(pool)][:count]


# --- judgement -------------------------------------------------------------------------------------------------------


def judge_all(mutants: Sequence[Mutant], folder: Path) -> Iterator[Verdict]:
    """Built on all processors, judged one by one; region by region, since opening one takes longer than judging."""
    subjects = {mutant.subject.kernel.digest: mutant.subject for mutant in mutants}
    build_all([(mutant.subject.region, mutant.kernel) for mutant in mutants], folder)
    build_all([(subject.region, subject.kernel) for subject in subjects.values()], folder)
    judge = UntimedJudge(folder)
    try:
        for mutant in sorted(mutants, key=lambda mutant: mutant.subject.region.digest):
            yield _judged(mutant, judge)
    finally:
        judge.close()


def _judged(mutant: Mutant, judge: UntimedJudge) -> Verdict:
    subject = mutant.subject
    if gate(mutant.kernel) is None and _object(subject.region, mutant.kernel, judge.folder) == _object(
        subject.region, subject.kernel, judge.folder
    ):
        return Verdict(mutant, "same code", "")
    names = distributions_for(subject.region, subject.workload)
    match judge.judge(subject.region, subject.workload, mutant.kernel, (*names, *with_other_seeds(names))):
        case None:
            return _looked_at_again(mutant, judge)
        case BuildFailed():
            return Verdict(mutant, "unbuildable", "compiler")
        case Refused(check=check):
            return Verdict(mutant, "unbuildable", check)
        case Mismatch(check=check, pattern=pattern):
            return Verdict(mutant, "killed", f"{check}: {pattern}")
        case Crashed(signal=signal):
            return Verdict(mutant, "killed", f"signal {signal}")
        case TimedOut():
            return Verdict(mutant, "killed", "endless")
        case outcome:
            raise AssertionError(f"{mutant.difference()}\n{outcome}")


def _looked_at_again(mutant: Mutant, judge: UntimedJudge) -> Verdict:
    subject = mutant.subject
    kinds = [
        name for name in distributions_for(subject.region, subject.workload) if name not in (BROKEN, *OUT_OF_RANGE)
    ]
    names = [f"{kind}#more{turn}" for turn in range(_MORE_SEEDS) for kind in kinds]
    found = judge.judge(subject.region, subject.workload, mutant.kernel, names)
    if found is None:
        return Verdict(mutant, "equivalent", f"right on {len(names)} inputs more")
    return Verdict(mutant, "survived", str(found))


def _object(region: Region, kernel: Kernel, folder: Path) -> bytes | None:
    try:
        return compile_cpp(generate_cpp(kernel, region), folder).read_bytes()
    except KevolveError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedules", type=int, default=3, help="schedules of each family's kernel")
    parser.add_argument("--only", choices=("corpus", "families"))
    parser.add_argument("--out", type=Path, help="file for the report as JSON")
    options = parser.parse_args()
    subjects = [] if options.only == "families" else corpus_subjects()
    subjects += [] if options.only == "corpus" else family_subjects(options.schedules)
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="kevolve-mutants-") as folder:
        for verdict in judge_all(sample(subjects, options.count, options.seed), Path(folder)):
            verdicts.append(verdict)
            if verdict.outcome == "survived":
                print(f"survived  {verdict.mutant.difference()}\n{verdict.reason}\n", flush=True)
    summary = _summary(verdicts)
    print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    if options.out is not None:
        listed = {
            outcome: [verdict.mutant.difference() for verdict in verdicts if verdict.outcome == outcome]
            for outcome in ("survived", "equivalent")
        }
        document = record.header("mutants", clock_for("cpu")) | {"seed": options.seed, **summary, **listed}
        record.write(options.out, document)


def _summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.outcome == "killed")
    wrong = outcomes["killed"] + outcomes["survived"]
    return {
        "mutants": len(verdicts),
        "outcomes": dict(outcomes.most_common()),
        "killed_share": outcomes["killed"] / wrong if wrong else None,
        "killed_by": dict(reasons.most_common()),
    }


if __name__ == "__main__":
    main()
