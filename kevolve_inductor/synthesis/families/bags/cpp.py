"""Bags as C++: blocks of bags over threads, and rows of tables fetched some positions before they are added.

Nothing foretells the hardware which rows come next, so that without a prefetch every row is waited for in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....graph.dims import Dim, product
from ....graph.region import ITEM_SIZES, TensorSpec
from ...expression import CPP_PRELUDE, used_only
from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.cpp import CPP_STORAGE, CPP_TYPES, literal, signature, to_storage
from ...expression.expression import Expr
from ...family import Schedule
from ..row_printers import CppRowPrinter
from .groups import Group
from .plan import POSITION, Bag, Fold, Loop, extents, is_gather

# Sums of this many positions are added up, so that the error of long sums grows slowly.
_PARTIAL = 64
_LINE_BYTES = 64
# Lines of a row that are fetched ahead; the hardware fetches the rest of a longer one by itself.
_MOST_LINES = 8
_COMBINED = {"add": "{0} + {1}", "maximum": "kv_max({0}, {1})", "minimum": "kv_min({0}, {1})"}


def source_of(
    groups: Sequence[Group],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    symbols: Sequence[str],
    schedule: Schedule,
) -> str:
    texts = [_Text(group, f"bags{k}", outputs, symbols, schedule) for k, group in enumerate(groups)]
    block = int(schedule["block"])
    body = [line for text in texts for line in text.tables()]
    body.append("int64_t end = 0, failed = 0;")
    for k, text in enumerate(texts):
        body.append(f"const int64_t count{k} = {text.count}, blocks{k} = (count{k} + {block - 1}) / {block};")
        body.append(f"const int64_t start{k} = end;")
        body.append(f"end += {text.group.size} * blocks{k};")
    body.append(f"#pragma omp parallel for schedule({schedule['order']}) reduction(|:failed) if(end > 1)")
    body.append("for (int64_t item = 0; item < end; ++item) {")
    for k, text in reversed(list(enumerate(texts))):
        body += [f"{'if' if k == len(texts) - 1 else 'else if'} (item >= start{k}) {{", *text.item(k, block), "}"]
    body += ["}", "return failed != 0;"]
    entry = signature("kevolve_kernel", inputs, outputs, symbols)
    parts = [CPP_PRELUDE, *(text.function() for text in texts), f"{entry} {{", *body, "}", ""]
    return used_only("\n".join(parts))


@dataclass(frozen=True)
class _Text:
    """The function of one group, and how it is called for one block of one of its bags."""

    group: Group
    name: str
    outputs: Sequence[TensorSpec]
    symbols: Sequence[str]
    schedule: Schedule

    @property
    def bag(self) -> Bag:
        return self.group.body

    @property
    def count(self) -> str:
        return f"int64_t({product(extents(self.bag.axes))})"

    # --- calls ---

    def tables(self) -> list[str]:
        """What differs between the bags of the group, in arrays by bag."""
        lines = []
        for slot, (kind, numbers) in enumerate(zip(self._inputs(), self.group.pointers, strict=True)):
            lines.append(f"const {kind}* const {self.name}_a{slot}[] = {{{', '.join(f'in{n}' for n in numbers)}}};")
        for slot, (kind, numbers) in enumerate(zip(self._results(), self.group.results, strict=True)):
            lines.append(f"{kind}* const {self.name}_o{slot}[] = {{{', '.join(f'out{n}' for n in numbers)}}};")
        for parameter in self.group.parameters:
            values = ", ".join(literal(value, "int64") for value in parameter.values)
            lines.append(f"const int64_t {self.name}_{parameter.name}[] = {{{values}}};")
        return lines

    def item(self, number: int, block: int) -> list[str]:
        slots = [*(f"a{slot}" for slot in range(len(self.group.pointers)))]
        slots += [*(f"o{slot}" for slot in range(len(self.group.results))), *(p.name for p in self.group.parameters)]
        given = [f"{self.name}_{slot}[task]" for slot in slots]
        span = f"first, std::min<int64_t>(first + {block}, count{number})"
        return [
            f"const int64_t place = item - start{number}, task = place / blocks{number};",
            f"const int64_t first = (place % blocks{number}) * {block};",
            f"failed |= {self.name}({', '.join([*given, span, *self.symbols])});",
        ]

    def _inputs(self) -> list[str]:
        return [CPP_STORAGE[dtype] for dtype in self.group.pointer_dtypes]

    def _results(self) -> list[str]:
        return [CPP_STORAGE[self._stored(slot)] for slot in range(len(self.group.results))]

    def _stored(self, slot: int) -> str:
        return self.outputs[self.group.results[slot][0]].dtype

    # --- the function ---

    def function(self) -> str:
        parameters = [f"const {kind}* __restrict a{slot}" for slot, kind in enumerate(self._inputs())]
        parameters += [f"{kind}* __restrict o{slot}" for slot, kind in enumerate(self._results())]
        names = [*(parameter.name for parameter in self.group.parameters), "begin", "end", *self.symbols]
        parameters += [f"const int64_t {name}" for name in names]
        printer = CppRowPrinter("b")
        body = [*self._place("bag", ""), *self._check(printer)]
        for k, loop in enumerate(self.bag.loops):
            body += self._loop(loop, k, printer)
            for fold in loop.folds:
                place = f"[{self._element()}]" if self.bag.is_row(fold.body) else ""
                printer.name(ex.var(fold.name, None, fold.held), f"{fold.name}{place}")
        body += self._finish(printer)
        return "\n".join(
            [
                f"static inline int64_t {self.name}({', '.join(parameters)}) {{",
                "int64_t bad = 0;",
                "for (int64_t bag = begin; bag < end; ++bag) {",
                *body,
                "}",
                "return bad;",
                "}",
            ]
        )

    def _place(self, bag: str, prefix: str) -> list[str]:
        """Coordinates of a bag."""
        lines, rest = [], bag
        for name, extent in reversed(self.bag.axes[1:]):
            lines.append(f"const int64_t {prefix}{name} = ({rest}) % ({extent});")
            rest = f"({rest}) / ({extent})"
        return [*lines, *(f"const int64_t {prefix}{name} = {rest};" for name, _ in self.bag.axes[:1])]

    def _check(self, printer: CppRowPrinter) -> list[str]:
        """A bag that fails is left alone: its reads may be out of range."""
        if not self.bag.fails:
            return []
        wrong = " | ".join(printer.value(fail) for fail in self.bag.fails)
        return [*printer.taken(), f"if ({wrong}) {{ bad = 1; continue; }}"]

    # --- one loop ---

    def _loop(self, loop: Loop, number: int, outer: CppRowPrinter) -> list[str]:
        low, high = outer.value(loop.span.low), outer.value(loop.span.high)
        lines = outer.taken()
        lines += [self._declared(fold, fold.name) for fold in loop.folds]
        is_long = loop.span.length is None or loop.span.length > _PARTIAL
        partial = [fold for fold in loop.folds if is_long and fold.combine == "add" and fold.held in ex.FLOATS]
        ahead, before = self._ahead(loop, number, outer)
        lines += before
        targets = {fold.name: f"part_{fold.name}" if fold in partial else fold.name for fold in loop.folds}
        if not partial:
            return [*lines, *self._positions(loop, low, high, ahead, targets, outer)]
        return [
            *lines,
            f"for (int64_t from = {low}; from < {high}; from += {_PARTIAL}) {{",
            f"const int64_t to = std::min<int64_t>(from + {_PARTIAL}, {high});",
            *(self._declared(fold, targets[fold.name]) for fold in partial),
            *self._positions(loop, "from", "to", ahead, targets, outer),
            *(line for fold in partial for line in self._joined(fold, targets[fold.name])),
            "}",
        ]

    def _declared(self, fold: Fold, name: str) -> str:
        kind, start = CPP_TYPES[fold.held], literal(fold.neutral, fold.held)
        if not self.bag.is_row(fold.body):
            return f"{kind} {name} = {start};"
        count = product(extents(self.bag.inner))
        if fold.neutral == 0:
            return f"alignas(64) {kind} {name}[{count}] = {{}};"
        return f"alignas(64) {kind} {name}[{count}]; for (int64_t i = 0; i < {count}; ++i) {name}[i] = {start};"

    def _joined(self, fold: Fold, part: str) -> list[str]:
        if not self.bag.is_row(fold.body):
            return [f"{fold.name} += {part};"]
        return [f"for (int64_t i = 0; i < {product(extents(self.bag.inner))}; ++i) {fold.name}[i] += {part}[i];"]

    def _positions(
        self, loop: Loop, low: str, high: str, ahead: list[str], targets: dict[str, str], outer: CppRowPrinter
    ) -> list[str]:
        printer = outer.within("p")
        for fold in loop.folds:
            printer.hoisted(fold.body, self.bag.is_row)
        inner = printer.within("t")
        rows: list[str] = []
        numbers: list[str] = []
        for fold in loop.folds:
            is_row = self.bag.is_row(fold.body)
            target = targets[fold.name] + (f"[{self._element()}]" if is_row else "")
            combined = _COMBINED[fold.combine].format(target, (inner if is_row else printer).value(fold.body))
            (rows if is_row else numbers).append(f"{target} = {CPP_TYPES[fold.held]}({combined});")
        rows = [*inner.lines, *rows]
        body = [*ahead, *printer.lines, *numbers, *(self._over_row(rows) if rows else [])]
        return [f"for (int64_t {POSITION} = {low}; {POSITION} < {high}; ++{POSITION}) {{", *body, "}"]

    def _over_row(self, body: list[str]) -> list[str]:
        heads = [f"for (int64_t {name} = 0; {name} < {extent}; ++{name}) {{" for name, extent in self.bag.inner]
        if not heads:
            return ["{", *body, "}"]
        return [*heads[:-1], "#pragma GCC ivdep", heads[-1], *body, "}" * len(heads)]

    def _element(self) -> str:
        """Position of the current element within its row."""
        text = ""
        for name, extent in self.bag.inner:
            text = f"({text} * {extent} + {name})" if text else name
        return text or "0"

    # --- fetching ahead ---

    def _ahead(self, loop: Loop, number: int, outer: CppRowPrinter) -> tuple[list[str], list[str]]:
        """Statements of every position that fetch the rows of a later one, and what stands before the positions.

        Behind the end of a bag the next one goes on: with offsets at the next event, else at its own first positions.
        """
        gathers = self._gathered_rows(loop)
        distance = int(self.schedule["ahead"])
        length = loop.span.length
        if length is not None:
            distance = min(distance, length)
        if not gathers or not distance:
            return [], []
        names = {POSITION: f"ahead{number}"}
        if length is None:
            last = CppRowPrinter(f"l{number}_")
            high = last.value(self._moved(loop.span.high, {self.bag.axes[0][0]: "last"}))
            # Where later bags end has not been checked yet.
            stop = f"std::min<int64_t>({high}, {self._events(loop)}) - 1"
            before = ["const int64_t last = end - 1;", *last.lines, f"const int64_t stop{number} = {stop};"]
            bound = f"std::max<int64_t>({POSITION}, stop{number})"
            lines = [f"const int64_t ahead{number} = std::min<int64_t>({POSITION} + {distance}, {bound});"]
        else:
            before = self._place("std::min<int64_t>(bag + 1, end - 1)", f"next{number}_")
            lines = [f"const bool own{number} = {POSITION} < {length - distance};"]
            shift = f"{POSITION} + (own{number} ? {distance} : {distance - length})"
            lines.append(f"const int64_t ahead{number} = {shift};")
            for name, _ in self.bag.axes:
                lines.append(f"const int64_t then{number}_{name} = own{number} ? {name} : next{number}_{name};")
                names[name] = f"then{number}_{name}"
        printer = CppRowPrinter(f"a{number}_")
        for read, first, count in gathers:
            offset = printer.value(self._moved(first, names))
            lines += printer.taken()
            step = _LINE_BYTES // ITEM_SIZES[read.value[1]]
            lines += [f"__builtin_prefetch(a{read.value[0]} + {offset} + {k * step});" for k in range(count)]
        return lines, before

    def _events(self, loop: Loop) -> Dim:
        """How many positions there are in all bags together."""
        parts = (part for fold in loop.folds for part in ex.walk(fold.body))
        events: Dim = next(part.value[1] for part in parts if part.op == "var" and part.value[0] == POSITION)
        return events

    def _moved(self, expr: Expr, names: dict[str, str]) -> Expr:
        known = {**dict(self.bag.axes), POSITION: None}
        return replace_variables(expr, {old: ex.var(new, known[old]) for old, new in names.items()}, is_offset=True)

    def _gathered_rows(self, loop: Loop) -> list[tuple[Expr, Expr, int]]:
        """Reads of rows at places that depend on data: the read, the offset of a row's first element, its cache lines."""
        found: dict[tuple[int, Expr], tuple[Expr, Expr, int]] = {}
        start = {name: ex.index(0) for name, _ in self.bag.inner}
        for read in (part for fold in loop.folds for part in ex.walk(fold.body) if part.op == "read"):
            if not is_gather(read) or POSITION not in ex.variables(read):
                continue
            first = replace_variables(read.args[0], start, is_offset=True)
            size = int(product(extents(self.bag.inner))) if self.bag.is_row(read) else 1
            lines = min(_MOST_LINES, -(-size * ITEM_SIZES[read.value[1]] // _LINE_BYTES))
            found[(read.value[0], first)] = (read, first, lines)
        return list(found.values())

    # --- results ---

    def _finish(self, outer: CppRowPrinter) -> list[str]:
        for store in self.bag.stores:
            outer.hoisted(store.value, self.bag.is_row)
            outer.hoisted(store.offset, self.bag.is_row)
        lines = outer.taken()
        inner = outer.within("e")
        stores = []
        for store in self.bag.stores:
            value, offset = inner.value(store.value), inner.value(store.offset)
            stores.append(f"o{store.output}[{offset}] = {to_storage(value, self._stored(store.output))};")
        return [*lines, *self._over_row([*inner.lines, *stores])]
