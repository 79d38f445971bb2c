"""Selections (top-k, sort, arg-max ...) judged as choices: any valid choice is right, an invalid one is wrong.

Two kernels that compute scores with different rounding may order near-equal scores differently. The reference
therefore takes a candidate's indices, checks them against the fp64 scores, and goes on with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .blocks import blocks_of
from .region import Region, RegionNode

# Relative and absolute tolerance by dtype, those of torch.testing.assert_close.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}

_PAIRS = frozenset({"aten.topk.default", "aten.sort.default", "aten.sort.stable", "aten.max.dim", "aten.min.dim"})
_INDICES = frozenset({"aten.argmax.default", "aten.argmin.default"})
# Operators that pass indices on without changing their order.
_CARRIERS = frozenset(
    {"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.unsqueeze.default", "aten.clone.default",
     "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten._to_copy.default",
     "prims.convert_element_type.default"}
)  # fmt: skip
_WIDE_ENOUGH = frozenset({"int64", "int32", "float64"})


@dataclass(frozen=True)
class Chosen:
    """A candidate's output that holds the indices of a selection, perhaps reshaped or cast."""

    output: int
    indices: torch.Tensor


@dataclass(frozen=True)
class SelectionFault:
    """``wrong`` marks the entries of the index output that are not a valid choice."""

    output: int
    wrong: torch.Tensor


@dataclass(frozen=True)
class SelectionResult:
    """What the selection node gives downstream in either precision: an index tensor, or (values, indices)."""

    eager: Any
    exact: Any
    fault: SelectionFault | None


@dataclass(frozen=True)
class Selection:
    """One selection node with its scores in both precisions.

    ``first_of_ties``: among scores equal in both precisions the lowest index comes first. ``exact_scores``: the
    scores are not computed, only moved, so that no tolerance applies.
    """

    is_pair: bool
    is_extreme: bool
    dim: int | None
    keepdim: bool
    descending: bool
    is_sorted: bool
    first_of_ties: bool
    eager_scores: torch.Tensor
    exact_scores: torch.Tensor
    is_exact: bool

    @classmethod
    def of(cls, node: RegionNode, eager: torch.Tensor, exact: torch.Tensor, is_exact: bool) -> Selection:
        kind = node.target.split(".")[1]
        options = dict(zip(_PARAMETERS[node.target], node.args[1:], strict=False)) | node.kwargs
        is_extreme = kind in ("max", "min", "argmax", "argmin")
        return cls(
            is_pair=node.target in _PAIRS,
            is_extreme=is_extreme,
            dim=options.get("dim", None if node.target in _INDICES else -1),
            keepdim=bool(options.get("keepdim", False)),
            descending=bool(
                options.get("largest", True) if kind == "topk" else options.get("descending", "max" in kind)
            ),
            is_sorted=bool(options.get("sorted", True)),
            first_of_ties=is_extreme or bool(options.get("stable", False)),
            eager_scores=eager,
            exact_scores=exact,
            is_exact=is_exact,
        )


_PARAMETERS: dict[str, tuple[str, ...]] = {
    "aten.topk.default": ("k", "dim", "largest", "sorted"),
    "aten.sort.default": ("dim", "descending"),
    "aten.sort.stable": (),
    "aten.max.dim": ("dim", "keepdim"),
    "aten.min.dim": ("dim", "keepdim"),
    "aten.argmax.default": ("dim", "keepdim"),
    "aten.argmin.default": ("dim", "keepdim"),
}


def is_selection(target: str) -> bool:
    return target in _PARAMETERS


def outputs_of_selections(region: Region) -> dict[str, int]:
    """By selection node, the first output of the region that holds its indices."""
    found: dict[str, int] = {}
    for output, name in enumerate(region.outputs):
        selection = _selection_behind(region, name)
        if selection is not None:
            found.setdefault(selection, output)
    return found


def _selection_behind(region: Region, name: str) -> str | None:
    while name[0] == "n":
        node = region.nodes[int(name[1:])]
        if node.target in _INDICES:
            return name
        source = next(_first_reference(node), None)
        if source is None:
            return None
        if node.target == "getitem":
            is_index = source[0] == "n" and region.nodes[int(source[1:])].target in _PAIRS and node.args[1] == 1
            return source if is_index else None
        if node.target not in _CARRIERS or node.specs[0].dtype not in _WIDE_ENOUGH:
            return None
        name = source
    return None


def _first_reference(node: RegionNode) -> Iterator[str]:
    for argument in node.args[:1]:
        if isinstance(argument, dict) and "node" in argument:
            yield argument["node"]


def select(selection: Selection, eager_result: Any, chosen: Chosen | None) -> SelectionResult:
    """The selection with the candidate's indices where they are valid, with eager's own elsewhere."""
    eager_indices = eager_result[1] if selection.is_pair else eager_result
    indices, fault = eager_indices, None
    if chosen is not None:
        candidate = chosen.indices.reshape(eager_indices.shape).to(torch.int64)
        wrong = _wrong_choices(selection, candidate)
        if wrong.any():
            fault = SelectionFault(chosen.output, wrong.reshape(chosen.indices.shape))
        else:
            indices = candidate
    if not selection.is_pair:
        return SelectionResult(indices, indices, fault)
    eager_values = _picked(selection, selection.eager_scores, indices)
    exact_values = _picked(selection, selection.exact_scores, indices)
    return SelectionResult((eager_values, indices), (exact_values, indices), fault)


def _picked(selection: Selection, scores: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    rows, at, dim = _aligned(selection, scores, indices)
    return rows.gather(dim, at).reshape(indices.shape)


def _aligned(
    selection: Selection, scores: torch.Tensor, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores and indices with the same number of dimensions, and the one selected along."""
    if selection.dim is None or scores.dim() == 0:
        return scores.reshape(-1), indices.reshape(-1), 0
    dim = selection.dim % scores.dim()
    if selection.is_extreme and not selection.keepdim:
        indices = indices.unsqueeze(dim)
    return scores, indices, dim


def _wrong_choices(selection: Selection, candidate: torch.Tensor) -> torch.Tensor:
    exact, indices, dim = _aligned(selection, selection.exact_scores, candidate)
    eager = selection.eager_scores.reshape(exact.shape)
    if exact.dtype is torch.bool:
        exact, eager = exact.to(torch.uint8), eager.to(torch.uint8)
    outside = (indices < 0) | (indices >= exact.shape[dim])
    indices = indices.clamp(0, max(exact.shape[dim] - 1, 0))
    picked = exact.gather(dim, indices)
    wanted = _best_scores(selection, exact, indices.shape[dim], dim)
    if not selection.is_sorted:
        picked = picked.sort(dim, descending=selection.descending).values
        wanted = wanted.sort(dim, descending=selection.descending).values
    near = (picked - wanted).abs() <= _slack(selection, eager, exact, wanted, dim)
    wrong = outside | ~(_same(picked, wanted) | near)
    if not selection.is_extreme:
        wrong |= _repeated(indices, dim)
    if selection.first_of_ties:
        wrong |= _not_first(selection, eager, exact, indices, dim)
    return wrong.reshape(candidate.shape)


def _best_scores(selection: Selection, exact: torch.Tensor, count: int, dim: int) -> torch.Tensor:
    if selection.is_extreme:
        return exact.amax(dim, keepdim=True) if selection.descending else exact.amin(dim, keepdim=True)
    if count == exact.shape[dim]:
        return exact.sort(dim, descending=selection.descending).values
    return exact.topk(count, dim, largest=selection.descending, sorted=True).values


def _slack(
    selection: Selection, eager: torch.Tensor, exact: torch.Tensor, wanted: torch.Tensor, dim: int
) -> torch.Tensor | float:
    """How far below the best score a choice may lie: twice what a correct kernel's score may be off."""
    if selection.is_exact or not exact.is_floating_point():
        return 0.0
    error = (eager.double() - exact).abs().nan_to_num(0.0, 0.0, 0.0).amax(dim, keepdim=True)
    relative, absolute = TOLERANCES[eager.dtype]
    own = relative * wanted.abs() + absolute * typical_magnitude(exact)
    return 2.0 * torch.maximum(2.0 * error, own.nan_to_num(0.0, 0.0, 0.0))


def typical_magnitude(values: torch.Tensor) -> float:
    """Root mean square of the finite values, at most 1: scales absolute tolerances down for outputs that are all small."""
    squares, count = 0.0, 0
    for at in blocks_of(values):
        squares += float(values[at].nan_to_num(0.0, 0.0, 0.0).square_().sum())
        count += int(values[at].isfinite().sum())
    return min(1.0, math.sqrt(squares / count)) if count else 1.0


def _same(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left == right) | (left.isnan() & right.isnan()) if left.is_floating_point() else left == right


def _repeated(indices: torch.Tensor, dim: int) -> torch.Tensor:
    ordered, order = indices.sort(dim)
    count = indices.shape[dim]
    repeated = torch.zeros_like(indices, dtype=torch.bool)
    if count > 1:
        again = ordered.narrow(dim, 1, count - 1) == ordered.narrow(dim, 0, count - 1)
        repeated.scatter_(dim, order.narrow(dim, 1, count - 1), again)
    return repeated


def _not_first(
    selection: Selection, eager: torch.Tensor, exact: torch.Tensor, indices: torch.Tensor, dim: int
) -> torch.Tensor:
    """Where, among equal scores, a higher index stands before a lower one."""
    eager_picked, exact_picked = eager.gather(dim, indices), exact.gather(dim, indices)
    if selection.is_extreme:
        equal = _same(eager, eager_picked) & _same(exact, exact_picked)
        return equal.to(torch.uint8).argmax(dim, keepdim=True) < indices
    late = torch.zeros_like(indices, dtype=torch.bool)
    count = indices.shape[dim]
    if count > 1:
        after, before = indices.narrow(dim, 1, count - 1), indices.narrow(dim, 0, count - 1)
        tied = _same(exact_picked.narrow(dim, 1, count - 1), exact_picked.narrow(dim, 0, count - 1))
        tied &= _same(eager_picked.narrow(dim, 1, count - 1), eager_picked.narrow(dim, 0, count - 1))
        late.narrow(dim, 1, count - 1).copy_(tied & (after < before))
    return late
