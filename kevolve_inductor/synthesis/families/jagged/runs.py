"""A row cut into runs of positions: where conditions are known, and where every indexed read walks in step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...expression import expression as ex
from ...expression.access import replace
from ...expression.cpp import CPP_TYPES
from ...expression.expression import Expr
from ...expression.flat import FlatCppPrinter
from .plan import POSITION, ROW
from .windows import Window, at_position, conditions, moves_in_step, resolved, uses


class RowPrinter(FlatCppPrinter):
    """``guard``, where given, is a condition under which alone memory may be read."""

    def __init__(self, prefix: str, guard: str = "") -> None:
        super().__init__(prefix)
        self.guard = guard

    def within_row(self, prefix: str, guard: str = "") -> RowPrinter:
        """A printer for a loop inside the row; it knows what the row has computed."""
        inner = RowPrinter(prefix, guard)
        inner._names = dict(self._names)
        return inner

    def _read(self, expr: Expr, arguments: list[str]) -> str:
        text = super()._read(expr, arguments)
        if not self.guard or not ex.variables(expr.args[0]) - {ROW}:
            return text
        return f"({self.guard} ? {text} : {CPP_TYPES[expr.dtype]}(0))"


@dataclass(frozen=True)
class Run:
    """Positions ``low <= at < high`` (C++ names), what conditions are there, and the value with its reads in step.

    ``value`` is ``None`` where reads cannot be in step: then a row has no fast way.
    """

    low: str
    high: str
    value: Expr | None
    inside: bool = False


@dataclass
class Opening:
    """The statements that open a row, and its runs. ``fast`` are C++ conditions for taking the runs."""

    printer: RowPrinter = field(default_factory=lambda: RowPrinter("r"))
    lines: list[str] = field(default_factory=list)
    fast: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def has_fast_way(self) -> bool:
        return all(run.value is not None for run in self.runs)

    def text(self, expr: Expr) -> str:
        """The C++ name of a row-level value, with what computes it appended to ``lines``."""
        name = self.printer.value(expr)
        self.lines += self.printer.lines
        self.printer.lines.clear()
        return name


def open_row(value: Expr, length: int) -> Opening:
    """Runs of a body over positions ``0 … length - 1``: before, inside and after its main window."""
    row = Opening()
    found = conditions(value, POSITION)
    windows = list(dict.fromkeys(window for window, _ in found.values()))
    for number, window in enumerate(windows):
        _bounds(row, number, window, length)
    row.fast += [f"(low{number} >= high{number})" for number in range(1, len(windows))]
    cuts = [("0", f"{length}", False)]
    if windows:
        cuts = [("0", "low0", False)] if windows[0].lows else []
        cuts += [("low0", "high0", True), ("high0", f"{length}", False)]
    for low, high, inside in cuts:
        known = {condition: (inside and window == windows[0]) == holds for condition, (window, holds) in found.items()}
        row.runs.append(_run(row, value, low, high, inside, known))
    return row


def _bounds(row: Opening, number: int, window: Window, length: int) -> None:
    low, high = "int64_t(0)", f"int64_t({length})"
    for bound in window.lows:
        low = f"std::max<int64_t>({low}, {row.text(bound)})"
    for bound in window.highs:
        high = f"std::min<int64_t>({high}, {row.text(bound)})"
    row.lines.append(f"const int64_t low{number} = std::min<int64_t>({low}, {length});")
    row.lines.append(f"const int64_t high{number} = std::max<int64_t>({high}, low{number});")


def _run(row: Opening, value: Expr, low: str, high: str, inside: bool, known: dict[Expr, bool]) -> Run:
    here = resolved(value, known)
    in_step: dict[Expr, Expr] = {}
    read = set(_index_checks(here))
    for check in _index_checks(value):
        at = resolved(check.args[0], known)
        same = ex.make(check.op, check.dtype, (at,), check.value)
        if _is_computed(at):
            if same not in read:
                return Run(low, high, None, inside)
            continue
        way = moves_in_step(at, POSITION)
        if way is None:
            return Run(low, high, None, inside)
        if same in read:
            in_step[same] = _walked(row, same, way, low, high)
        elif check.op == "check_index":
            row.fast.append(_valid(row, same, low, high))
    return Run(low, high, replace(here, lambda part, _: in_step.get(part)), inside)


def _index_checks(value: Expr) -> list[Expr]:
    return [part for part in ex.walk(value) if part.op in ("check_index", "within") and uses(part, POSITION)]


def _is_computed(at: Expr) -> bool:
    """Does an index depend on data read at each position? Then it is checked there."""
    return any(part.op == "read" and uses(part, POSITION) for part in ex.walk(at))


def _ends(row: Opening, at: Expr, low: str, high: str) -> tuple[str, str]:
    first = at_position(at, POSITION, ex.var(f"int64_t({low})"))
    last = at_position(at, POSITION, ex.var(f"int64_t({high} - 1)"))
    return row.text(first), row.text(last)


def _walked(row: Opening, check: Expr, way: int, low: str, high: str) -> Expr:
    """The index as a start and a step, which holds where its two ends are in range and as far apart as the run is long."""
    first, last = _ends(row, check.args[0], low, high)
    extent = f"uint64_t({check.value[0]})"
    distance = f"{last} - {first} == {way} * ({high} - 1 - {low})"
    row.fast.append(
        f"(({low} >= {high}) | ((uint64_t({first}) < {extent}) & (uint64_t({last}) < {extent}) & ({distance})))"
    )
    name = f"base{len(row.lines)}"
    row.lines.append(f"const int64_t {name} = {first} - {way} * int64_t({low});")
    start = ex.var(name)
    return ex.iadd(start, ex.imul(ex.var(POSITION, _EXTENT), ex.index(way))) if way else start


# Any extent marks the position as an axis; how far it runs is up to the loop.
_EXTENT = 2**31


def _valid(row: Opening, check: Expr, low: str, high: str) -> str:
    """Both ends of an index that is not used in this run, but that eager looks up all the same, are in range."""
    extent, wrap = check.value
    ends = _ends(row, check.args[0], low, high)
    least = f"-int64_t({extent})" if wrap else "0"
    valid = " & ".join(f"({end} >= {least}) & ({end} < int64_t({extent}))" for end in dict.fromkeys(ends))
    return f"(({low} >= {high}) | ({valid}))"


def plain_fails(row: Opening, fails: Sequence[Expr]) -> str:
    """A C++ condition: eager raises for this row."""
    return " | ".join(f"bool({row.text(fail)})" for fail in fails) or "false"
