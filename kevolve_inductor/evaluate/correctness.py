"""Comparing a candidate's outputs with the reference. Runs in a process that never runs candidates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import torch

from ..graph.dims import evaluate
from ..graph.reference import Reference, dtype_of, evaluate_fp64, evaluate_with_other_means
from ..graph.region import Region, Workload
from ..graph.rounding import RoundingSpread
from ..graph.selection import outputs_of_selections
from .causes import cause_of, cause_of_values
from .closeness import Verdict, compare, distance
from .evaluation import Mismatch
from .inputs import OUT_OF_RANGE, generate
from .patterns import find_pattern

_REMEMBERED_BYTES = 2**29
_DOUBLE_BYTES = 8
_REHEARSED = 64
# What random rounding makes of an element is a draw as well; twice four standard deviations are allowed.
_SPREADS = 8.0
# Of very many elements a few are further off: beside a large term, small ones may all be rounded to the same side.
_SPREADS_OF_FEW = 4.0 * _SPREADS
_FEW = 2.0**-15
_ENOUGH_IN_ROW = 16
# All elements together are no draw: their errors' norm stays near what rounding gives.
_SPREADS_IN_NORM = 3.0
_FIRST_DRAWS, _MOST_DRAWS = 4, 32
# What is this many times off what a few draws allow is no matter of rounding.
_FAR_OFF = 30.0
# Elements evaluated for one distribution's draws: seconds on either kind of device.
_MOST_WORK = {"cpu": 2**29, "cuda": 2**35}


@dataclass(frozen=True)
class Agreed:
    """``max_error`` is the largest absolute distance to the fp64 reference."""

    max_error: float


@dataclass(frozen=True)
class NoReference:
    """The reference itself cannot be evaluated, e.g. because no valid inputs are known."""

    reason: str


class Judge:
    """Compares outputs for one region and workload; remembers references between candidates."""

    def __init__(
        self, region: Region, workload: Workload, seed: int, device: torch.device, remembered_bytes: int = 0
    ) -> None:
        self._most_remembered = max(remembered_bytes, _REMEMBERED_BYTES)
        self.region, self.workload, self.seed, self.device = region, workload, seed, device
        self._references: OrderedDict[str, Reference | None] = OrderedDict()
        self._spreads: OrderedDict[str, RoundingSpread] = OrderedDict()
        self._selected = tuple(outputs_of_selections(region).values())

    def judge(self, distribution: str, outputs: Sequence[torch.Tensor] | None) -> Agreed | Mismatch | NoReference:
        """``None`` for outputs says that the candidate reported an index out of range."""
        try:
            reference = self._own_reference(distribution)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return NoReference(f"{type(error).__name__}: {error}")
        if reference is None and distribution not in OUT_OF_RANGE:
            return NoReference(f"eager itself finds an index out of range in {distribution!r} inputs")
        if reference is None or outputs is None:
            if reference is None and outputs is None:
                return Agreed(0.0)
            total = outputs[0].numel() if outputs else 0
            cause = cause_of("index out of range", "everything")
            return Mismatch("index out of range", "everything", distribution, 0, total, total, (), 0.0, None, cause)
        return self._compare(distribution, self._under_same_choices(distribution, reference, outputs), outputs)

    def rehearse(self) -> None:
        """Compare a few numbers of the outputs' dtypes, so that what this takes is loaded."""
        for spec in self.region.output_specs:
            numbers = torch.ones(_REHEARSED, _REHEARSED, dtype=dtype_of(spec.dtype), device=self.device)
            compare(numbers, numbers.double(), numbers, bitwise=False)

    def _own_reference(self, distribution: str) -> Reference | None:
        """With eager's own selections; ``None`` where eager raises for an index."""
        if distribution not in self._references:
            self._make_room()
            try:
                reference = self._generated(distribution)
            except torch.OutOfMemoryError:
                # What is remembered may be what is missing.
                self._references.clear()
                self._spreads.clear()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                reference = self._generated(distribution)
            self._references[distribution] = reference
        return self._references[distribution]

    def _generated(self, distribution: str) -> Reference | None:
        inputs = generate(self.region, self.workload, distribution, self.seed, self.device)
        return self._evaluate(distribution, inputs)

    def _evaluate(self, distribution: str, inputs: list[torch.Tensor]) -> Reference | None:
        try:
            return evaluate_fp64(self.region, inputs)
        except IndexError:
            return None
        except RuntimeError:
            # Several operators report an index out of range as a RuntimeError.
            if distribution in OUT_OF_RANGE:
                return None
            raise

    def applies(self, distribution: str) -> bool:
        """Whether eager accepts the inputs: sizes that a graph never has together are no test of a kernel."""
        try:
            return self._own_reference(distribution) is not None
        except (RuntimeError, NotImplementedError, ValueError):
            return False

    def _make_room(self) -> None:
        """Forget what one more reference leaves no room for, before that takes the memory."""
        outputs = self.region.output_specs
        numel = sum(evaluate(spec.numel, self.workload.symbols) for spec in outputs)
        one = _DOUBLE_BYTES * numel + sum(spec.size_bytes(self.workload.symbols) for spec in outputs)
        while self._references and self._remembered_bytes() + one > self._most_remembered:
            self._references.popitem(last=False)

    def _remembered_bytes(self) -> int:
        references = [reference for reference in self._references.values() if reference is not None]
        return sum(t.numel() * t.element_size() for r in references for t in (*r.exact, *r.eager))

    def _under_same_choices(
        self, distribution: str, reference: Reference, outputs: Sequence[torch.Tensor]
    ) -> Reference:
        if all(torch.equal(outputs[k], reference.eager[k]) for k in self._selected):
            return reference
        inputs = generate(self.region, self.workload, distribution, self.seed, self.device)
        return evaluate_fp64(self.region, inputs, {k: outputs[k] for k in self._selected})

    def _compare(self, distribution: str, reference: Reference, outputs: Sequence[torch.Tensor]) -> Agreed | Mismatch:
        if reference.faults:
            fault = reference.faults[0]
            chosen = Verdict("valid selection", fault.wrong, None, pattern="selection")
            return _mismatch(chosen, distribution, fault.output, cause_of(chosen.check, "selection"))
        max_error = 0.0
        for number, output in enumerate(outputs):
            exact, eager = reference.exact[number], reference.eager[number]
            verdict = compare(output, exact, eager, reference.bitwise[number])
            if (verdict.wrong & ~exact.isfinite()).any():
                others = [means[number] for means in self._with_other_means(distribution, outputs)]
                verdict = compare(output, exact, eager, reference.bitwise[number], others)
            if verdict.by_rounding:
                verdict = self._with_other_orders(distribution, number, verdict, distance(eager, exact))
            if verdict.wrong.any():
                inputs = generate(self.region, self.workload, distribution, self.seed, self.device)
                cause = cause_of_values(output, exact, verdict.wrong, inputs)
                return _mismatch(verdict, distribution, number, cause)
            if verdict.error is not None and verdict.error.numel():
                max_error = max(max_error, float(verdict.error.max()))
        return Agreed(max_error)

    def _with_other_means(
        self, distribution: str, outputs: Sequence[torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], ...]:
        """What else the outputs may be where a mean of infinities is an accident of eager's order."""
        inputs = generate(self.region, self.workload, distribution, self.seed, self.device)
        try:
            return evaluate_with_other_means(self.region, inputs, {k: outputs[k] for k in self._selected})
        except torch.OutOfMemoryError:
            # Then eager's own order has to do.
            return ()

    def _with_other_orders(
        self, distribution: str, number: int, verdict: Verdict, eager_error: torch.Tensor
    ) -> Verdict:
        """The verdict where eager's error may have been any that rounding gives, not only the one that it has."""
        assert verdict.error is not None and verdict.overflowed is not None
        spread = self._spread_of(distribution)
        wrong, error, overflowed = verdict.wrong, verdict.error, verdict.overflowed
        if overflowed.any():
            if spread is None or bool((overflowed & ~spread.may_overflow(number)).any()):
                return verdict
            wrong = wrong & ~overflowed
        finite = wrong
        while spread is not None:
            deviation = spread.deviation(number)
            allowed = _SPREADS * deviation * _times_as_far(eager_error, deviation)
            wrong = finite & (error > allowed)
            if wrong.sum() <= _FEW * wrong.numel():
                wrong &= error > _SPREADS_OF_FEW * deviation
            if error.norm() > max(verdict.allowed_norm, _SPREADS_IN_NORM * float(deviation.norm())):
                wrong = finite
            if not wrong.any() or spread.draws >= self._most_draws():
                break
            if bool((error > _FAR_OFF * _of_row(allowed))[wrong].any()):
                break
            spread.draw(spread.draws)
        return replace(verdict, wrong=wrong)

    def _spread_of(self, distribution: str) -> RoundingSpread | None:
        if distribution not in self._spreads:
            inputs = generate(self.region, self.workload, distribution, self.seed, self.device)
            try:
                spread = RoundingSpread(self.region, inputs, self.seed)
                spread.draw(_FIRST_DRAWS)
            except (ValueError, RuntimeError):
                # Of some operators, and in too little memory, nothing can be said: then eager's own error has to do.
                return None
            self._spreads[distribution] = spread
            while len(self._spreads) > 1 and len(self._spreads) * spread.size_bytes > self._most_remembered:
                self._spreads.popitem(last=False)
        return self._spreads[distribution]

    def _most_draws(self) -> int:
        symbols = self.workload.symbols
        elements = sum(evaluate(spec.numel, symbols) for node in self.region.nodes for spec in node.specs)
        return max(_FIRST_DRAWS, min(_MOST_DRAWS, _MOST_WORK.get(self.device.type, 2**29) // max(elements, 1)))


def _times_as_far(eager_error: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """How many times as far as the random errors eager's own are, at least once; row by row where rows are long enough.

    A sum that runs over thousands of terms one after another errs more than the random roundings take it to.
    """
    along = -1 if eager_error.dim() and eager_error.shape[-1] >= _ENOUGH_IN_ROW else None
    norms = [torch.linalg.vector_norm(values, dim=along, keepdim=True) for values in (eager_error, deviation)]
    return (norms[0] / norms[1]).nan_to_num(1.0, 1.0, 1.0).clamp_min(1.0)


def _of_row(values: torch.Tensor) -> torch.Tensor:
    return values.amax(-1, keepdim=True) if values.dim() and values.numel() else values


def _mismatch(verdict: Verdict, distribution: str, number: int, cause: str | None) -> Mismatch:
    wrong, error = verdict.wrong, verdict.error
    if error is None:
        at = int(wrong.reshape(-1).to(torch.uint8).argmax())
        worst = 0.0
    else:
        at = int(torch.where(wrong, error, -1.0).reshape(-1).argmax())
        worst = float(error.reshape(-1)[at])
    index = tuple(int(k) for k in numpy.unravel_index(at, tuple(wrong.shape))) if wrong.dim() else ()
    place = find_pattern(wrong)
    return Mismatch(
        verdict.check, verdict.pattern or place.pattern, distribution, number, int(wrong.sum()), wrong.numel(), index, worst,
        place.words, cause or cause_of(verdict.check, verdict.pattern or place.pattern),
    )  # fmt: skip
