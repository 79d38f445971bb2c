"""Where the products of known pairs go, as arithmetic on tile indices instead of tables: Triton source holds no data."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from .pairs import KnownPairs, Run

# Beyond this, a select per feature and per run of the same feature costs more than it is worth.
_MOST_LAYERS = 4


def layers_of(pairs: KnownPairs) -> list[list[Run]]:
    """Runs in layers, in each of which a feature has one run at most."""
    layers: list[list[Run]] = []
    seen: dict[int, int] = {}
    for run in pairs.runs:
        layer = seen.get(run.row, 0)
        seen[run.row] = layer + 1
        if layer == len(layers):
            layers.append([])
        layers[layer].append(run)
    return layers


def are_few(pairs: KnownPairs) -> bool:
    return len(layers_of(pairs)) <= _MOST_LAYERS


def polynomial(values: Mapping[int, int], name: str) -> str:
    """An integer expression over ``name`` that takes these values: a polynomial of degree two, else a chain of selects.

    At other points it takes any value.
    """
    points = sorted(values)
    if len(points) >= 3:
        twice = [
            2 * part
            for part in _interpolated([(x, values[x]) for x in (points[0], points[len(points) // 2], points[-1])])
        ]
        if all(part.denominator == 1 for part in twice):
            a, b, c = (int(part) for part in twice)
            if all((a * x * x + b * x + c) == 2 * values[x] for x in points):
                return _text(a, b, c, name)
    text = str(values[points[0]])
    for point in points[1:]:
        text = f"tl.where({name} == {point}, {values[point]}, {text})"
    return f"({text})" if len(points) > 1 else f"({name} * 0 + {text})"


def _interpolated(points: list[tuple[int, int]]) -> tuple[Fraction, Fraction, Fraction]:
    """Coefficients of x², x and 1 through three points (Newton's divided differences)."""
    (x0, y0), (x1, y1), (x2, y2) = points
    slope = Fraction(y1 - y0, x1 - x0)
    a = (Fraction(y2 - y1, x2 - x1) - slope) / (x2 - x0)
    b = slope - a * (x0 + x1)
    return a, b, y0 - a * x0 * x0 - b * x0


def _text(a: int, b: int, c: int, name: str) -> str:
    """``(a x² + b x + c) / 2``, which is an integer wherever it is used; the shift rounds down elsewhere."""
    if not a and not b % 2 and not c % 2:
        return f"({name} * {b // 2} + {c // 2})"
    return f"(({name} * {name} * {a} + {name} * {b} + {c}) >> 1)"


def gathered(pairs: KnownPairs, column: str, stride: int) -> str:
    """The element of a square with ``stride`` columns that belongs in ``column``: a step wherever a new run begins."""
    text, before = "", 0
    for run in pairs.runs:
        shift = run.row * stride + run.first - run.column
        if run.column == 0:
            text = f"{column} + {shift}" if shift else column
        elif shift != before:
            text += f" + tl.where({column} >= {run.column}, {shift - before}, 0)"
        before = shift
    return text
