"""Whether a compiler's outputs agree with eager's, and where they do not, which of the two is nearer to float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Instance, Selection

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# Two roundings of the same value may lie on either side of it.
_EAGERS_ERROR = 2.0


def disagreement(expected: Any, actual: Any, instance: Instance, exact: Callable[[], Any] | None = None) -> str | None:
    """``None`` where outputs agree with eager's: integers exactly, floats within rounding, selections up to ties.

    ``exact`` gives the outputs of the same function in float64. Where it is given, floats that differ from eager's agree
    nevertheless if none is further from the exact ones than twice the furthest of eager's.
    """
    wanted, got = tensors(expected), tensors(actual)
    if len(wanted) != len(got):
        return f"{len(got)} outputs for {len(wanted)}"
    for index, (left, right) in enumerate(zip(wanted, got, strict=True)):
        if left.shape != right.shape or left.dtype != right.dtype:
            return f"output {index}: {right.dtype} {tuple(right.shape)} for {left.dtype} {tuple(left.shape)}"
        if instance.selection and instance.selection.index_output == index:
            problem = _selection_problem(left, right, instance.selection, instance.inputs)
        else:
            problem = _value_problem(left, right)
            if problem and exact is not None and left.dtype.is_floating_point:
                problem = _further_than_eager(left, right, tensors(exact())[index], problem)
        if problem:
            return f"output {index}: {problem}"
    return None


def tensors(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _value_problem(expected: Tensor, actual: Tensor) -> str | None:
    wrong = int(_differing(expected, actual, 0.0).sum())
    return f"{wrong} of {expected.numel()} elements differ" if wrong else None


def _differing(expected: Tensor, actual: Tensor, besides: float) -> Tensor:
    if not expected.dtype.is_floating_point:
        return expected != actual
    # What cancels keeps the errors of what it was made from: those of the output's typical value.
    tolerance, exact = _TOLERANCES[actual.dtype], expected.double()
    finite = exact[exact.isfinite()]
    absolute = tolerance * float(finite.abs().mean()) if finite.numel() else 0.0
    return ~torch.isclose(actual.double(), exact, rtol=tolerance, atol=absolute + besides, equal_nan=True)


def _further_than_eager(eager: Tensor, actual: Tensor, exact: Tensor, problem: str) -> str | None:
    error = (eager.double() - exact.double()).abs()
    furthest = float(error[error.isfinite()].max()) if bool(error.isfinite().any()) else 0.0
    wrong = int(_differing(exact, actual, _EAGERS_ERROR * furthest).sum())
    return f"{problem}, {wrong} of them are further from float64 than eager's" if wrong else None


def _selection_problem(
    expected: Tensor, actual: Tensor, selection: Selection, inputs: tuple[Tensor, ...]
) -> str | None:
    scores = selection.scores(*inputs)
    reduced = expected.dim() < scores.dim()
    if reduced:
        expected, actual = expected.unsqueeze(selection.dim), actual.unsqueeze(selection.dim)
    if int(actual.min()) < 0 or int(actual.max()) >= scores.shape[selection.dim]:
        return "an index is out of range"
    ordered = torch.sort(actual, dim=selection.dim).values
    if bool((ordered.diff(dim=selection.dim) == 0).any()):
        return "an index is selected twice"
    return _value_problem(scores.gather(selection.dim, expected), scores.gather(selection.dim, actual))
