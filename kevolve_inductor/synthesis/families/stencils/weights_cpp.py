"""Sums for a convolution's weight in C++: a thread has channels of its own, and adds up a row at a time.

Where positions are next to each other in memory, every tap is a dot product of two rows, cut to where both are; where
channels are, vectors of channels are multiplied and added position by position. Rows are summed in double.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ...expression import expression as ex
from ...expression.access import flatten
from ...expression.cpp import CPP_TYPES, signature, to_storage
from ...expression.expression import Expr
from ...family import Schedule
from .cpp import WindowPrinter
from .plan import tap_name
from .weights import CHANNEL, WeightPlan
from .windows import Window, simplified

# Positions of a row that are summed in one go, and channels of a block where those are vectors.
_ROW, _LANES = 1024, 64


def weights_text(plan: WeightPlan, schedule: Schedule) -> str:
    """The function ``kevolve_weights``, without the prelude."""
    body = _channels_last(plan) if plan.has_channels_last else _rows(plan)
    count = plan.channel[1] if not plan.has_channels_last else -(-int(plan.channel[1]) // _LANES)
    head = signature("kevolve_weights", plan.inputs, plan.outputs, ()).replace("__restrict in", "__restrict a")
    return "\n".join([
        f"{head} {{", "int64_t bad = 0;",
        f"#pragma omp parallel for schedule({schedule['order']}) reduction(|:bad)",
        f"for (int64_t unit = 0; unit < {count}; ++unit) {{", *body, "}", "return bad != 0;", "}",
    ])  # fmt: skip


def _tap_numbers(plan: WeightPlan) -> Iterator[tuple[int, tuple[int, ...]]]:
    return enumerate(itertools.product(*(range(window.taps) for window in plan.windows)))


def _value(plan: WeightPlan, expr: Expr, taps: Sequence[int]) -> tuple[list[str], str]:
    """The statements of a value that is known to be read inside, and its name."""
    printer = WindowPrinter(lambda number: "true")
    mapping = {tap_name(d): ex.index(tap) for d, tap in enumerate(taps)}
    text = printer.value(simplified(flatten(expr, plan.inputs), mapping))
    return printer.lines, text


def _between(window: Window, tap: int) -> tuple[int, int]:
    """The places from which a tap is inside of the source, and the end of them."""
    start = window.base + tap * window.dilation
    return max(-(start // window.stride), 0), max(-((start - int(window.size)) // window.stride), 0)


def _conditions(plan: WeightPlan, taps: Sequence[int], count: int) -> str:
    """Whether the taps of the first ``count`` windows are inside."""
    parts = []
    for place, window, tap in list(zip(plan.places, plan.windows, taps, strict=True))[:count]:
        low, high = _between(window, tap)
        parts.append(f"{place} >= {low} && {place} < {high}")
    return " && ".join(parts) or "true"


def _loops(plan: WeightPlan, count: int) -> list[str]:
    return [f"for (int64_t {name} = 0; {name} < {extent}; ++{name}) {{" for name, extent in plan.axes[:count]]


def _rows(plan: WeightPlan) -> list[str]:
    kind, count, (inner, extent) = CPP_TYPES[plan.held], plan.taps, plan.axes[-1]
    lines, value = _value(plan, plan.gradient, [0] * len(plan.windows))
    body = [
        f"const int64_t {CHANNEL} = unit;", f"double totals[{count + 1}] = {{}};", f"alignas(64) {kind} row[{_ROW}];",
        *_loops(plan, len(plan.axes) - 1),
        f"for (int64_t start = 0; start < {extent}; start += {_ROW}) {{",
        f"const int64_t end = std::min<int64_t>(start + {_ROW}, {extent});", f"{kind} whole = 0;",
        "#pragma omp simd reduction(+:whole)",
        f"for (int64_t {inner} = start; {inner} < end; ++{inner}) {{", *lines,
        f"row[{inner} - start] = {value};", f"whole += {value};", "}", f"totals[{count}] += whole;",
    ]  # fmt: skip
    for number, taps in _tap_numbers(plan) if plan.weight is not None else ():
        low, high = _between(plan.windows[-1], taps[-1])
        lines, value = _value(plan, plan.source, taps)
        body += [
            f"if ({_conditions(plan, taps, len(taps) - 1)}) {{", f"{kind} part = 0;",
            "#pragma omp simd reduction(+:part)",
            f"for (int64_t {inner} = std::max<int64_t>(start, {low}); {inner} < std::min<int64_t>(end, {high}); ++{inner}) {{",
            *lines, f"part += row[{inner} - start] * {value};", "}", f"totals[{number}] += part;", "}",
        ]  # fmt: skip
    return [*body, "}" * len(plan.axes), *_stores(plan, "totals[{}]")]


def _channels_last(plan: WeightPlan) -> list[str]:
    kind, count = CPP_TYPES[plan.held], plan.taps
    lines, value = _value(plan, plan.gradient, [0] * len(plan.windows))
    lanes = ["for (int64_t l = 0; l < count; ++l) {", f"const int64_t {CHANNEL} = unit * {_LANES} + l;"]
    body = [
        f"const int64_t count = std::min<int64_t>({_LANES}, {plan.channel[1]} - unit * {_LANES});",
        f"double totals[{count + 1}][{_LANES}] = {{}};", *_loops(plan, len(plan.axes) - 1),
        f"alignas(64) {kind} parts[{count + 1}][{_LANES}] = {{}}, here[{_LANES}];", *_loops(plan, len(plan.axes))[-1:],
        *lanes, *lines, f"here[l] = {value};", f"parts[{count}][l] += {value};", "}",
    ]  # fmt: skip
    for number, taps in _tap_numbers(plan) if plan.weight is not None else ():
        lines, value = _value(plan, plan.source, taps)
        body += [f"if ({_conditions(plan, taps, len(taps))}) {{", *lanes, *lines,
                 f"parts[{number}][l] += here[l] * {value};", "}", "}"]  # fmt: skip
    body += [
        "}",
        f"for (int64_t k = 0; k < {count + 1}; ++k) for (int64_t l = 0; l < count; ++l) totals[k][l] += parts[k][l];",
    ]
    return [*body, "}" * (len(plan.axes) - 1), *lanes, *_stores(plan, "totals[{}][l]"), "}"]


def _stores(plan: WeightPlan, total: str) -> list[str]:
    kind = CPP_TYPES[plan.held]
    lines = []
    if plan.weight is not None:
        for number, taps in _tap_numbers(plan):
            before, at = _value(plan, plan.weight_at, taps)
            value = to_storage(f"{kind}({total.format(number)})", plan.outputs[plan.weight].dtype)
            lines += ["{", *before, f"out{plan.weight}[{at}] = {value};", "}"]
    if plan.bias is not None:
        value = to_storage(f"{kind}({total.format(plan.taps)})", plan.outputs[plan.bias].dtype)
        lines.append(f"out{plan.bias}[{CHANNEL} * {plan.bias_step}] = {value};")
    return lines
