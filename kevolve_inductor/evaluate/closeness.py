"""How close one output is to the reference, and how close it has to be. Large outputs are compared block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..graph.blocks import blocks_of
from ..graph.selection import TOLERANCES, typical_magnitude
from .evaluation import Pattern

# A candidate may be this much worse than eager's own rounding, which is an accident of eager's order of operations.
_EAGER_ERRORS = 2.0
# The error of a row's sum is a draw: where eager was lucky, the typical row says what another order may give. With four
# times the median of normal draws, twice that is beyond 5 standard deviations.
_TYPICAL_ERRORS = 4.0
_ENOUGH_ROWS = 16


@dataclass(frozen=True)
class Verdict:
    """``wrong`` and ``error`` have the output's shape; ``error`` is 0 where no difference is defined.

    ``pattern`` where what is wrong, not where, makes it. ``by_rounding``: each value is near the right one or not, or not
    finite where the right one is; then ``overflowed`` says where. No value is finite in place of an infinity.
    """

    check: str
    wrong: torch.Tensor
    error: torch.Tensor | None
    pattern: Pattern | None = None
    by_rounding: bool = False
    allowed_norm: float = 0.0
    overflowed: torch.Tensor | None = None


def compare(
    output: torch.Tensor,
    exact: torch.Tensor,
    eager: torch.Tensor,
    bitwise: bool,
    others: Sequence[torch.Tensor] = (),
) -> Verdict:
    """``exact`` is the output in fp64 and ``eager`` in its own dtype; ``bitwise``: only moved or compared, so exact.

    Where neither is finite, NaN or an infinity as in one of ``others`` is right as well.
    """
    if output.dtype is torch.bool:
        # Compared as bytes: a truth value is 0 or 1, and whoever reads it later relies on that.
        output, eager = output.view(torch.uint8), eager.to(torch.uint8)
        exact = exact.to(torch.uint8)
    if not output.is_floating_point():
        return Verdict("equal integers", (output != eager) & (output != exact), None)
    wrong = torch.empty(output.shape, dtype=torch.bool, device=output.device)
    error = torch.empty(output.shape, dtype=torch.float64, device=output.device)
    if bitwise:
        return _compare_bits(output, exact, eager, Verdict("equal bits", wrong, error))
    return _compare_values(output, exact, eager, others, Verdict("fp64 reference", wrong, error))


def _compare_bits(output: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, empty: Verdict) -> Verdict:
    assert empty.error is not None
    nans_differ = False
    for at in blocks_of(exact):
        mine, own, wanted = output[at], eager[at], exact[at]
        nans_differ |= bool(_nan_differs(mine, wanted, own).any())
        empty.wrong[at] = (mine != own) & ~(mine.isnan() & own.isnan())
        empty.error[at] = distance(mine, wanted)
    return Verdict(empty.check, empty.wrong, empty.error, _nan_placement(nans_differ))


def _compare_values(
    output: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, others: Sequence[torch.Tensor], empty: Verdict
) -> Verdict:
    assert empty.error is not None
    wrong, error = empty.wrong, empty.error
    overflowed = torch.empty_like(wrong)
    allowance = _Allowance.of(exact, eager)
    nans_differ, by_rounding = False, True
    squares, allowed_squares = 0.0, 0.0
    for at in blocks_of(exact):
        mine, own, wanted = output[at], eager[at], exact[at]
        error[at] = distance(mine, wanted)
        allowed = allowance.allowed(wanted, own)
        nan_differs = _nan_differs(mine, wanted, own)
        same_infinity = (mine == own) | (mine.double() == wanted) | _rounds_to_infinity(mine, wanted, allowed)
        is_finite, own_is_finite, wanted_is_finite = mine.isfinite(), own.isfinite(), wanted.isfinite()
        none_finite = ~own_is_finite & ~wanted_is_finite
        not_finite = (~same_infinity & mine.isinf()) | (none_finite & is_finite) | nan_differs
        # Where eager's own precision does not reach to the end, a candidate's need not either.
        not_finite &= is_finite | own_is_finite | ~wanted_is_finite
        for other in others:
            not_finite &= ~(none_finite & _as_in(mine, other[at]))
        wrong[at] = not_finite | (error[at] > allowed)
        overflowed[at] = not_finite & ~is_finite & wanted_is_finite
        nans_differ |= bool((nan_differs & not_finite).any())
        by_rounding &= not bool((not_finite & ~overflowed[at]).any())
        squares += float(error[at].square().sum())
        allowed_squares += float(allowance.of_each(wanted, own).square().sum())
    if squares > allowed_squares:
        for at in blocks_of(exact):
            wrong[at] |= error[at] > allowance.of_each(exact[at], eager[at])
    by_rounding &= bool(wrong.any())
    return Verdict(
        empty.check, wrong, error, _nan_placement(nans_differ), by_rounding, allowed_squares**0.5, overflowed
    )


def _nan_differs(output: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor) -> torch.Tensor:
    """Where rounding alone decides (an overflow, 0/0 of underflowed values), the fp64 placement counts as well."""
    nan = output.isnan()
    return (nan != eager.isnan()) & (nan != exact.isnan())


def _as_in(output: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where both are NaN or the same infinity."""
    return (output.isnan() & other.isnan()) | (output.isinf() & (output.double() == other))


def _rounds_to_infinity(output: torch.Tensor, exact: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Where a value within the allowed error of the exact one is beyond the dtype's largest."""
    beyond = exact.abs() + allowed >= torch.finfo(output.dtype).max
    return output.isinf() & beyond & ((output > 0) == (exact > 0))


def _nan_placement(differs: bool) -> Pattern | None:
    return "nan placement" if differs else None


def distance(output: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Absolute distance, 0 wherever either side is not finite."""
    distance = (output.double() - exact).abs()
    return distance.nan_to_num_(0.0, 0.0, 0.0)


def allowed_error(exact: torch.Tensor, eager: torch.Tensor) -> torch.Tensor:
    """Largest permitted distance to the fp64 value, element by element.

    The greater of the tolerance that ``torch.testing`` has for the dtype (its absolute part scaled down where all values
    are small) and twice eager's own error: at the element, the worst of its row, or what is typical of all rows relative
    to their magnitudes, since which element of which row eager happens to round badly is not a property of the region.
    """
    return _Allowance.of(exact, eager).allowed(exact, eager)


@dataclass(frozen=True)
class _Allowance:
    """What an output as a whole says about the errors to allow: the tolerance's parts, and the typical error of a row
    relative to the row's magnitude where there are enough rows."""

    relative: float
    absolute: float
    typical: torch.Tensor | None

    @classmethod
    def of(cls, exact: torch.Tensor, eager: torch.Tensor) -> _Allowance:
        relative, absolute = TOLERANCES[eager.dtype]
        return cls(relative, absolute * typical_magnitude(exact), _typical_of_rows(exact, eager))

    def of_each(self, exact: torch.Tensor, eager: torch.Tensor) -> torch.Tensor:
        """Where every element stands for itself."""
        return torch.maximum(self._tolerance(exact), _EAGER_ERRORS * distance(eager, exact))

    def allowed(self, exact: torch.Tensor, eager: torch.Tensor) -> torch.Tensor:
        error = distance(eager, exact)
        if error.dim() and error.numel():
            error = torch.maximum(error, self._of_rows(error, exact))
        return torch.maximum(self._tolerance(exact), _EAGER_ERRORS * error)

    def _tolerance(self, exact: torch.Tensor) -> torch.Tensor:
        return (self.relative * exact.abs() + self.absolute).nan_to_num_(0.0, 0.0, 0.0)

    def _of_rows(self, error: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        """Eager's error row by row, ``[..., 1]``: the row's worst, or four times the typical row's, scaled to this row."""
        worst = error.amax(-1, keepdim=True)
        if self.typical is None:
            return worst
        return torch.maximum(worst, (_TYPICAL_ERRORS * self.typical * _magnitude(exact)).nan_to_num(0.0, 0.0, 0.0))


def _typical_of_rows(exact: torch.Tensor, eager: torch.Tensor) -> torch.Tensor | None:
    """The median of the rows' worst errors, each relative to its row's magnitude."""
    if not exact.dim() or not exact.numel() or exact.numel() // exact.shape[-1] < _ENOUGH_ROWS:
        return None
    shares = []
    for at in blocks_of(exact):
        worst, scale = distance(eager[at], exact[at]).amax(-1), _magnitude(exact[at])[..., 0]
        usable = (scale > 0) & scale.isfinite()
        shares.append(worst[usable] / scale[usable])
    found = torch.cat(shares)
    return found.median() if found.numel() else None


def _magnitude(exact: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row, ``[..., 1]``."""
    return exact.nan_to_num(0.0, 0.0, 0.0).square_().mean(-1, keepdim=True).sqrt()
