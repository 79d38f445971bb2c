"""Scans as C++. Along the fastest axis, rows are scanned within vector registers; along any other axis, vectors of running
values walk down it. Few and long lines are cut into parts: totals of all parts first, then each from where it starts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....graph.dims import product
from ...expression import CPP_PRELUDE, used_only
from ...expression import expression as ex
from ...expression.cpp import CPP_TYPES, literal, signature, to_storage
from ...expression.flat import FlatCppPrinter
from ...expression.loops import Store
from ...expression.remainder import CPP_REMAINDER
from ...family import Schedule
from .cpp_helpers import CPP_SCANS
from .plan import BEFORE, PLACE, PLACE_BEFORE, RUNNING, ScanPlan, start_of

# Less than this many positions in all are not worth waking threads up for.
_SERIAL = 32768
# Columns in front of a block of a row, the last of which holds what comes before the block.
_FRONT = 64


def source_of(plan: ScanPlan, schedule: Schedule) -> str:
    text = _Text(plan, schedule)
    parts = [CPP_PRELUDE, CPP_SCANS, CPP_REMAINDER, text.state(), text.start(), text.join(), text.span(), text.entry()]
    return used_only("\n".join(parts) + "\n")


class _Text:
    """The functions of one kernel. A *unit* is a line, or a block of neighbouring lines that are lanes."""

    def __init__(self, plan: ScanPlan, schedule: Schedule) -> None:
        self.plan, self.task = plan, plan.task
        self.schedule = schedule
        self.kind = CPP_TYPES[plan.held]
        # Eager on a CPU sums float32 in double, which also decides where a product overflows.
        precise = plan.result == "float32" and plan.kind not in ("maximum", "minimum")
        self.sums = "double" if precise else self.kind
        self.is_log = plan.kind == "logsumexp"
        self.value = self.kind if self.is_log else self.sums
        self.none = literal(start_of(plan.kind, plan.held), plan.held)
        self.operator = "kv_maximum" if self.is_log else f"kv_{plan.kind}"
        self.width = int(schedule["lanes"]) if self.task.lane else 1
        self.is_pair = plan.is_pair

    # --- the state between two positions, for every lane ---

    def state(self) -> str:
        """Of logarithms of sums ``running`` is the greatest value and ``sum`` what is relative to it."""
        fields = [f"{self.value} running[{self.width}];"]
        fields += [f"int64_t place[{self.width}];"] if self.is_pair else []
        fields += [f"{self.sums} sum[{self.width}];"] if self.is_log else []
        return "\n".join(["struct kv_state {", *fields, "};"])

    def start(self) -> str:
        body = [f"s.running[l] = {self.none};"]
        body += ["s.place[l] = 0;"] if self.is_pair else []
        body += ["s.sum[l] = 0;"] if self.is_log else []
        return "\n".join(["static inline void kv_start(kv_state& s) {", *self._lanes(body), "}"])

    def join(self) -> str:
        """``s`` and then ``t``, in ``t``."""
        update = self._update("s.", "t.running[l]", "t.place[l]", "t.sum[l]")
        stores = ["t.running[l] = running;"]
        stores += ["t.place[l] = place;"] if self.is_pair else []
        stores += ["t.sum[l] = sum;"] if self.is_log else []
        head = "static inline void kv_join(const kv_state& s, kv_state& t) {"
        return "\n".join([head, *self._lanes([*update, *stores]), "}"])

    def _lanes(self, body: list[str]) -> list[str]:
        return [f"for (int64_t l = 0; l < {self.width}; ++l) {{", *body, "}"]

    def _update(self, state: str, value: str, place: str, summed: str) -> list[str]:
        """Local ``running``, ``place`` and ``sum``: those of ``state`` joined with a value, its place and its sum."""
        before = f"{state}running[l]"
        if self.is_pair:
            sign = ">=" if self.plan.kind == "maximum" else "<="
            return [
                f"const {self.value} old = {before}, fresh = {value};",
                f"const bool later = (fresh != fresh) | ((old == old) & (fresh {sign} old));",
                f"const {self.value} running = later ? fresh : old;",
                f"const int64_t place = later ? {place} : {state}place[l];",
            ]
        lines = [f"const {self.value} running = {self.operator}::join({before}, {self.value}({value}));"]
        if self.is_log:
            scaled = f"{state}sum[l] * {self.sums}(kv_decay({before}, running))"
            own = f"{summed} * {self.sums}(kv_decay({self.value}({value}), running))" if summed else self._own(value)
            lines.append(f"const {self.sums} sum = {scaled} + {own};")
        return lines

    def _own(self, value: str, running: str = "running") -> str:
        return f"{self.sums}(kv_exp({value} - kv_level({running})))"

    def _log(self, running: str, summed: str) -> str:
        return f"(kv_level({running}) + kv_log({self.value}({summed})))"

    # --- a unit from one position to another ---

    def span(self) -> str:
        names = ("unit", "from", "to")
        head = signature("kv_span", self.plan.inputs, self.plan.outputs, (*self.plan.symbols, *names))
        head = head.replace('extern "C" int64_t', "template <bool stored> static inline int64_t")
        head = head.replace("__restrict in", "__restrict a")[:-1] + ", kv_state& s) {"
        body = self._vertical() if self.task.lane else self._along()
        return "\n".join([head, "int64_t bad = 0;", *self._coordinates(), *body, "return bad;", "}"])

    def _coordinates(self) -> list[str]:
        lines, rest = [], "unit"
        if self.task.lane:
            name, extent = self.task.lane
            blocks = f"((int64_t({extent}) + {self.width - 1}) / {self.width})"
            lines += [
                f"const int64_t first = unit % {blocks} * {self.width};",
                f"const int64_t count = std::min<int64_t>({self.width}, int64_t({extent}) - first);",
            ]
            rest = f"(unit / {blocks})"
        for name, extent in reversed(self.task.lines[1:]):
            lines.append(f"const int64_t {name} = {rest} % int64_t({extent});")
            rest = f"({rest} / int64_t({extent}))"
        return lines + [f"const int64_t {name} = {rest};" for name, _ in self.task.lines[:1]]

    def _stores(self, printer: FlatCppPrinter, results: dict[str, str]) -> list[str]:
        names = {name: (ex.var(name, None, self.plan.held)) for name in (RUNNING, BEFORE)}
        names |= {name: ex.var(name) for name in (PLACE, PLACE_BEFORE)}
        for name, text in results.items():
            kind = CPP_TYPES[names[name].dtype]
            printer.name(names[name], f"{kind}({text})")
        return [line for store in self.task.stores for line in self._store(printer, store)]

    def _store(self, printer: FlatCppPrinter, store: Store) -> list[str]:
        value, offset = printer.value(store.value), printer.value(store.offset)
        lines = [*printer.lines]
        printer.lines.clear()
        return [*lines, f"out{store.output}[{offset}] = {to_storage(value, self.plan.outputs[store.output].dtype)};"]

    def _vertical(self) -> list[str]:
        """Lanes along the fastest axis, which is not the scan's."""
        scan, lane = self.task.scan[0], self.task.lane
        assert lane is not None
        values, after = FlatCppPrinter("t"), FlatCppPrinter("e")
        value = values.value(self.task.body)
        results = {RUNNING: "running", BEFORE: "s.running[l]", PLACE: "place", PLACE_BEFORE: "s.place[l]"}
        if self.is_log:
            results |= {RUNNING: self._log("running", "sum"), BEFORE: self._log("s.running[l]", "s.sum[l]")}
        wanted = {name: text for name, text in results.items() if name in self.plan.used}
        stores = ["if constexpr (stored) {", *self._stores(after, wanted), "}"]
        keep = ["s.running[l] = running;"]
        keep += ["s.place[l] = place;"] if self.is_pair else []
        keep += ["s.sum[l] = sum;"] if self.is_log else []
        body = [*values.lines, *self._update("s.", value, scan, ""), *stores, *keep]
        return [
            *self._edges(),
            f"for (int64_t {scan} = from; {scan} < to; ++{scan}) {{",
            "#pragma GCC ivdep",
            "for (int64_t l = 0; l < count; ++l) {",
            f"const int64_t {lane[0]} = first + l;",
            *body,
            "}",
            "}",
        ]

    def _along(self) -> list[str]:
        """One line, block by block: values, then their scan within registers, then what is made of it."""
        columns = int(self.schedule["columns"])
        value = self.value
        fill = FlatCppPrinter("t")
        text = fill.value(self.task.body)
        blocks = [f"alignas(64) {value} held[{columns + _FRONT}];", f"{value}* const running = held + {_FRONT};"]
        steps = [*self._each([*fill.lines, f"running[c] = {value}({text});"])]
        scanned = f"s.running[0] = kv_scan<{self.operator}>(running, n, s.running[0], {value}({self.none}));"
        results = {RUNNING: "running[c]", BEFORE: "running[c - 1]", PLACE: _placed("c"), PLACE_BEFORE: _placed("c - 1")}
        front = ["running[-1] = s.running[0];"]
        if self.is_pair:
            blocks += self._block("int32_t", "place", columns) + self._block(value, "own", columns)
            # Places within the block, in narrow numbers; -1 stands for the one carried into it.
            front += ["place[-1] = -1;", "const int64_t carried = s.place[0];"]
            # The running extreme was last seen where a value equals it; behind a NaN only at further NaNs.
            seen = "const bool seen = (own[c] != own[c]) | (own[c] == running[c]);"
            steps = self._each([*fill.lines, f"running[c] = own[c] = {value}({text});"])
            steps += [scanned, *self._each([seen, "place[c] = seen ? int32_t(c) : int32_t(-1);"])]
            steps += ["kv_scan<kv_maximum>(place, n, int32_t(-1), int32_t(-1));"]
            steps += [f"s.place[0] = {_placed('n - 1')};"]
        elif self.is_log:
            blocks += self._block(value, "own", columns)
            blocks += self._block(self.sums, "sum", columns) + self._block(self.sums, "scale", columns)
            front += ["sum[-1] = s.sum[0];"]
            steps = [*self._each([*fill.lines, f"running[c] = own[c] = {value}({text});"]), scanned]
            relative = [f"sum[c] = {self._own('own[c]', 'running[c]')};"]
            relative += [f"scale[c] = {self.sums}(kv_decay(running[c - 1], running[c]));"]
            steps += [*self._each(relative), "s.sum[0] = kv_recur(sum, scale, n, s.sum[0]);"]
            results |= {RUNNING: self._log("running[c]", "sum[c]"), BEFORE: self._log("running[c - 1]", "sum[c - 1]")}
        else:
            steps += [scanned]
        wanted = {name: text for name, text in results.items() if name in self.plan.used}
        stores = ["if constexpr (stored) {", *self._each(self._stores(FlatCppPrinter("e"), wanted)), "}"]
        return [
            *blocks,
            *self._edges(),
            f"for (int64_t start = from; start < to; start += {columns}) {{",
            f"const int64_t n = std::min<int64_t>({columns}, to - start);",
            *front,
            *steps,
            *stores,
            "}",
        ]

    def _edges(self) -> list[str]:
        """What outputs hold in front of a line's first position."""
        if not self.task.edges:
            return []
        printer = FlatCppPrinter("f")
        body = [line for store in self.task.edges for line in self._store(printer, store)]
        if self.task.lane is not None:
            lane = f"const int64_t {self.task.lane[0]} = first + l;"
            body = ["for (int64_t l = 0; l < count; ++l) {", lane, *body, "}"]
        return ["if (stored && from == 0) {", *body, "}"]

    def _block(self, kind: str, name: str, columns: int) -> list[str]:
        return [
            f"alignas(64) {kind} {name}_held[{columns + _FRONT}];",
            f"{kind}* const {name} = {name}_held + {_FRONT};",
        ]

    def _each(self, body: Sequence[str]) -> list[str]:
        scan = self.task.scan[0]
        head = ["#pragma GCC ivdep", "for (int64_t c = 0; c < n; ++c) {", f"const int64_t {scan} = start + c;"]
        return [*head, *body, "}"]

    # --- all units ---

    def entry(self) -> str:
        plan, task = self.plan, self.task
        arguments = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
        given = ", ".join([*arguments, *plan.symbols])
        length = f"int64_t({task.scan[1]})"
        lines = [
            f"{signature('kevolve_kernel', plan.inputs, plan.outputs, plan.symbols)} {{",
            "int64_t failed = 0;",
            f"const int64_t units = {self._units()}, length = {length};",
        ]
        parts = int(self.schedule["parts"])
        return "\n".join(
            [*lines, *(self._whole(given) if parts == 1 else self._cut(given, parts)), "return failed != 0;", "}"]
        )

    def _units(self) -> str:
        count = product(tuple(extent for _, extent in self.task.lines))
        if self.task.lane is None:
            return f"int64_t({count})"
        return f"int64_t({count}) * ((int64_t({self.task.lane[1]}) + {self.width - 1}) / {self.width})"

    def _whole(self, given: str) -> list[str]:
        return [
            f"#pragma omp parallel for schedule({self.schedule['order']}) reduction(|:failed) "
            f"if(units > 1 && units * length * {self.width} > {_SERIAL})",
            "for (int64_t unit = 0; unit < units; ++unit) {",
            "kv_state s;",
            "kv_start(s);",
            f"failed |= kv_span<true>({given}, unit, int64_t(0), length, s);",
            "}",
        ]

    def _cut(self, given: str, parts: int) -> list[str]:
        span = f"({given}, unit, k * step, std::min<int64_t>((k + 1) * step, length), states[k%s]);"
        loop = f"#pragma omp parallel for schedule({self.schedule['order']}) reduction(|:failed)"
        return [
            f"const int64_t step = (length + {parts - 1}) / {parts};",
            f"kv_state states[{parts}];",
            "for (int64_t unit = 0; unit < units; ++unit) {",
            f"for (int64_t k = 0; k < {parts}; ++k) kv_start(states[k]);",
            loop,
            f"for (int64_t k = 0; k < {parts - 1}; ++k) failed |= kv_span<false>{span % ' + 1'}",
            f"for (int64_t k = 1; k < {parts}; ++k) kv_join(states[k - 1], states[k]);",
            loop,
            f"for (int64_t k = 0; k < {parts}; ++k) failed |= kv_span<true>{span % ''}",
            "}",
        ]


def _placed(at: str) -> str:
    return f"(place[{at}] < 0 ? carried : start + int64_t(place[{at}]))"
