"""Comparing a candidate's outputs with the reference. Runs in a process that never runs candidates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import torch

from ..graph.dims import evaluate
from ..graph.reference import Reference, evaluate_fp64
from ..graph.region import Region, Workload
from ..graph.rounding import RoundingSpread
from ..graph.selection import TOLERANCES, outputs_of_selections, typical_magnitude
from .causes import cause_of, cause_of_values
from .evaluation import Mismatch, Pattern
from .inputs import OUT_OF_RANGE, generate
from .patterns import find_pattern

_REMEMBERED_BYTES = 2**29
# A candidate may be this much worse than eager's own rounding, which is an accident of eager's order of operations.
_EAGER_ERRORS = 2.0
# The error of a row's sum is a draw: where eager was lucky, the typical row says what another order may give. With four
# times the median of normal draws, twice that is beyond 5 standard deviations.
_TYPICAL_ERRORS = 4.0
_ENOUGH_ROWS = 16
# What random rounding makes of an element is a draw as well; twice four standard deviations are allowed.
_SPREADS = 8.0
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

    def _own_reference(self, distribution: str) -> Reference | None:
        """With eager's own selections; ``None`` where eager raises for an index."""
        if distribution not in self._references:
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
            while len(self._references) > 1 and self._remembered_bytes() > self._most_remembered:
                self._references.popitem(last=False)
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
            chosen = _Verdict("valid selection", fault.wrong, None, pattern="selection")
            return _mismatch(chosen, distribution, fault.output, cause_of(chosen.check, "selection"))
        max_error = 0.0
        for number, output in enumerate(outputs):
            exact, eager = reference.exact[number], reference.eager[number]
            verdict = _compare_one(output, exact, eager, reference.bitwise[number])
            if verdict.by_rounding:
                verdict = self._with_other_orders(distribution, number, verdict)
            if verdict.wrong.any():
                inputs = generate(self.region, self.workload, distribution, self.seed, self.device)
                cause = cause_of_values(output, exact, verdict.wrong, inputs)
                return _mismatch(verdict, distribution, number, cause)
            if verdict.error is not None and verdict.error.numel():
                max_error = max(max_error, float(verdict.error.max()))
        return Agreed(max_error)

    def _with_other_orders(self, distribution: str, number: int, verdict: _Verdict) -> _Verdict:
        """The verdict where eager's error may have been any that rounding gives, not only the one that it has."""
        assert verdict.error is not None
        spread = self._spread_of(distribution)
        wrong = verdict.wrong
        while spread is not None:
            deviation = spread.deviation(number)
            allowed = _SPREADS * deviation
            wrong = verdict.wrong & (verdict.error > allowed)
            if verdict.error.norm() > max(verdict.allowed_norm, _SPREADS_IN_NORM * float(deviation.norm())):
                wrong = verdict.wrong
            if not wrong.any() or spread.draws >= self._most_draws():
                break
            if bool((verdict.error > _FAR_OFF * _of_row(allowed))[wrong].any()):
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


def _of_row(values: torch.Tensor) -> torch.Tensor:
    return values.amax(-1, keepdim=True) if values.dim() and values.numel() else values


@dataclass(frozen=True)
class _Verdict:
    """``wrong`` and ``error`` have the output's shape; ``error`` is 0 where no difference is defined.

    ``pattern`` where what is wrong, not where, makes it. ``by_rounding``: finite values, each near the right one or not.
    """

    check: str
    wrong: torch.Tensor
    error: torch.Tensor | None
    pattern: Pattern | None = None
    by_rounding: bool = False
    allowed_norm: float = 0.0


def _compare_one(output: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, bitwise: bool) -> _Verdict:
    if output.dtype is torch.bool:
        # Compared as bytes: a truth value is 0 or 1, and whoever reads it later relies on that.
        output, eager = output.view(torch.uint8), eager.to(torch.uint8)
        exact = exact.to(torch.uint8)
    if not output.is_floating_point():
        return _Verdict("equal integers", (output != eager) & (output != exact), None)
    nan_differs = output.isnan() != eager.isnan()
    if bool(nan_differs.any()):
        # Where rounding alone decides (an overflow, 0/0 of underflowed values), the fp64 placement counts as well.
        nan_differs &= output.isnan() != exact.isnan()
    if bitwise:
        wrong = (output != eager) & ~(output.isnan() & eager.isnan())
        return _Verdict("equal bits", wrong, _distance(output, exact), _nan_placement(nan_differs))
    error = _distance(output, exact)
    allowed = allowed_error(exact, eager)
    same_infinity = (output == eager) | (output.double() == exact) | _rounds_to_infinity(output, exact, allowed)
    not_finite = ~same_infinity & (output.isinf() | (eager.isinf() & exact.isinf())) & ~output.isnan()
    not_finite |= nan_differs
    wrong = not_finite | (error > allowed)
    each = torch.maximum(_tolerance(exact, eager.dtype), _EAGER_ERRORS * _distance(eager, exact))
    allowed_norm = float(each.norm())
    if float(error.norm()) > allowed_norm:
        wrong |= error > each
    by_rounding = bool(wrong.any()) and not bool(not_finite.any())
    return _Verdict("fp64 reference", wrong, error, _nan_placement(nan_differs), by_rounding, allowed_norm)


def _rounds_to_infinity(output: torch.Tensor, exact: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Where a value within the allowed error of the exact one is beyond the dtype's largest."""
    beyond = exact.abs() + allowed >= torch.finfo(output.dtype).max
    return output.isinf() & beyond & ((output > 0) == (exact > 0))


def _nan_placement(differs: torch.Tensor) -> Pattern | None:
    return "nan placement" if bool(differs.any()) else None


def _distance(output: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Absolute distance, 0 wherever either side is not finite."""
    distance = (output.double() - exact).abs()
    return distance.nan_to_num_(0.0, 0.0, 0.0)


def allowed_error(exact: torch.Tensor, eager: torch.Tensor) -> torch.Tensor:
    """Largest permitted distance to the fp64 value, element by element.

    The greater of the tolerance that ``torch.testing`` has for the dtype (its absolute part scaled down where all values
    are small) and twice eager's own error: at the element, the worst of its row, or what is typical of all rows relative
    to their magnitudes, since which element of which row eager happens to round badly is not a property of the region.
    """
    error = _distance(eager, exact)
    if error.dim() and error.numel():
        error = torch.maximum(error, _error_of_rows(error, exact))
    return torch.maximum(_tolerance(exact, eager.dtype), _EAGER_ERRORS * error)


def _tolerance(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    relative, absolute = TOLERANCES[dtype]
    return (relative * exact.abs() + absolute * typical_magnitude(exact)).nan_to_num(0.0, 0.0, 0.0)


def _error_of_rows(error: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Eager's error row by row, ``[..., 1]``: the row's worst, or four times the median row's, scaled to this row."""
    worst = error.amax(-1, keepdim=True)
    if worst.numel() < _ENOUGH_ROWS:
        return worst
    scale = exact.nan_to_num(0.0, 0.0, 0.0).square().mean(-1, keepdim=True).sqrt()
    usable = (scale > 0) & scale.isfinite()
    if not bool(usable.any()):
        return worst
    typical = (worst[usable] / scale[usable]).median()
    return torch.maximum(worst, (_TYPICAL_ERRORS * typical * scale).nan_to_num(0.0, 0.0, 0.0))


def _mismatch(verdict: _Verdict, distribution: str, number: int, cause: str | None) -> Mismatch:
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
