"""The gradient of pooling by maxima. What scatters every result's gradient to where its maximum was gathers here, for every
element, from the results whose windows held it: no two threads add to the same element, and nothing is cleared before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import product
from ....graph.meta import dtype_name, shape_of, target_name, tensor_of
from ...expression import ExpressionBuilder
from ...expression import expression as ex
from ...expression.expression import Expr
from .gradient import Gradient
from .pooling import PLACES
from .stencil import Index, both, each, held_type, known

OPERATORS = ("aten.max_pool2d_with_indices_backward.default", "aten.max_pool3d_with_indices_backward.default")
# Views that keep the order of elements, and what stands between them where halves are added up in single precision.
_RESHAPES = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")
_CONVERSION = "prims.convert_element_type.default"


class MaximumGradient(Gradient):
    """Of the operator, which has the places of maxima as indices into a flattened plane; or of the ``scatter_add`` along
    flattened planes that it is decomposed to, seen from the view that gives the planes back their axes.

    ``where`` has the places, as numbers of taps in their windows (``counts_taps``) or as such indices.
    """

    where: torch.fx.Node
    counts_taps: bool

    def __init__(self, core: torch.fx.Node) -> None:
        if is_scattered_maximum(core):
            self._of_scatter(core)
        else:
            self._of_operator(core)
        self.held = held_type(self.source)

    def _of_operator(self, core: torch.fx.Node) -> None:
        gradient, source, kernel, stride, padding, dilation, _, where = core.args
        assert isinstance(gradient, torch.fx.Node) and isinstance(source, torch.fx.Node)
        assert isinstance(where, torch.fx.Node)
        self.source, self.shapes, self.where = gradient, (source,), where
        self.counts_taps = target_name(where) == PLACES and set(where.users) == {core}
        if self.counts_taps:
            # Numbers of taps are an eighth as wide as indices, which nobody else needs.
            self.where, self.absorbed = where.args[0], (where,)  # type: ignore[assignment]
        rank = next(rank for rank in (2, 3) if f"{rank}d" in target_name(core))
        taps = each(kernel, rank)
        self._gather(core, taps, each(stride, rank) if stride else taps, each(padding, rank), each(dilation, rank))

    def _of_scatter(self, core: torch.fx.Node) -> None:
        scatter = core.args[0]
        assert isinstance(scatter, torch.fx.Node)
        zeros, _, index, added = scatter.args
        places, *index_views = _seen_through(index)
        gradient, *views = _seen_through(added, widened=True)
        while views and shape_of(gradient) != shape_of(places):
            # The gradient itself may be a view of something else.
            gradient = views.pop(0)
        if shape_of(gradient) != shape_of(places):
            raise UnsupportedError("structure", f"{scatter} adds what has other axes than the places of maxima")
        if held_type(gradient) != dtype_name(tensor_of(scatter).dtype):
            raise UnsupportedError("dtype", f"{scatter} adds up in another type than its terms have")
        offsets, kernel, sizes, stride, padding, dilation = places.args
        assert isinstance(offsets, torch.fx.Node) and isinstance(zeros, torch.fx.Node)
        rank = len(sizes)  # type: ignore[arg-type]
        self.source, self.where, self.counts_taps = gradient, offsets, True
        self.absorbed = (*views, places, *index_views, zeros, scatter)
        if any(set(node.users) - {core, *self.absorbed} for node in (places, *index_views, scatter)):
            raise UnsupportedError("structure", f"the places that {core} hangs on are asked for elsewhere")
        lead = shape_of(gradient)[:-rank]
        flat = (product(lead), product(tuple(sizes)))  # type: ignore[arg-type]
        if shape_of(core) != (*lead, *sizes) or shape_of(scatter) not in (flat, (*lead, flat[1])):  # type: ignore[misc]
            raise UnsupportedError("structure", f"{core} has other axes than what was pooled")
        self._gather(core, *(each(value, rank) for value in (kernel, stride, padding, dilation)))

    def _gather(
        self, core: torch.fx.Node, taps: Sequence[int], strides: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:  # fmt: skip
        if any(wide > 1 for wide in dilation):
            raise UnsupportedError("structure", "the gradient of a dilated window")
        self.sizes = [known(size) for size in shape_of(core)[-len(taps) :]]
        self.gather(taps, strides, padding, dilation)

    def weighed(
        self, b: ExpressionBuilder, index: Index, taps: Index, value: Expr, positions: Index, inside: tuple[Expr, ...]
    ) -> tuple[Expr, tuple[Expr, ...]]:
        own, fits = self.numbers(index, taps)
        clamped = (w.clamp(at, d) for d, (w, at) in enumerate(zip(self.windows, positions, strict=True)))
        found = b.build(self.where, (*self.lead(index), *clamped))
        here, extents = (own, self.own_taps) if self.counts_taps else (index[len(index) - len(taps) :], self.sizes)
        number: Expr = ex.index(0)
        for at, extent in zip(here, extents, strict=True):
            number = ex.iadd(ex.imul(number, ex.index(extent)), at)
        # Compared in 32 bits: the number of a tap, or of an element of a plane, which there may not be more of.
        is_here = ex.make(
            "eq", "bool", (ex.cast(found, "int32"), ex.cast(ex.make("as_value", "int64", (number,)), "int32"))
        )
        value = ex.make("where", self.held, (is_here, value, ex.const(0.0, self.held)))
        return value, tuple(both(one, other) for one, other in zip(fits, inside, strict=True))


def is_scattered_maximum(node: torch.fx.Node) -> bool:
    """Whether ``node`` is a view of a sum over the places of maxima, and of nothing else."""
    scatter = node.args[0] if target_name(node) in _RESHAPES else None
    if not isinstance(scatter, torch.fx.Node) or target_name(scatter) != "aten.scatter_add.default":
        return False
    zeros, dim, index, added = scatter.args
    if not (isinstance(zeros, torch.fx.Node) and isinstance(index, torch.fx.Node) and isinstance(added, torch.fx.Node)):
        return False
    is_zero = target_name(zeros) == "aten.full.default" and bool(zeros.args[1] == 0)
    rank = len(shape_of(scatter))
    return is_zero and dim in (rank - 1, -1) and target_name(_seen_through(index)[0]) == PLACES


def is_for_gradient(places: torch.fx.Node) -> bool:
    """Whether places of maxima are only asked for to add up gradients there."""
    stack = [places]
    while stack:
        node = stack.pop()
        for user in node.users:
            if target_name(user) in _RESHAPES:
                stack.append(user)
            elif target_name(user) not in OPERATORS and not any(map(is_scattered_maximum, user.users)):
                return False
    return True


def _seen_through(node: object, widened: bool = False) -> list[torch.fx.Node]:
    """What ``node`` is a view of, then the views, innermost first; ``widened``: also through conversions that lose nothing."""
    assert isinstance(node, torch.fx.Node)
    chain = [node]
    while target_name(chain[0]) in _RESHAPES or (widened and _widens(chain[0])):
        source = chain[0].args[0]
        assert isinstance(source, torch.fx.Node)
        chain.insert(0, source)
    return chain


def _widens(node: torch.fx.Node) -> bool:
    if target_name(node) != _CONVERSION or not isinstance(node.args[0], torch.fx.Node):
        return False
    narrow, wide = (dtype_name(tensor_of(one).dtype) for one in (node.args[0], node))
    return narrow in ex.LOW_PRECISION and wide == "float32"
