"""Three ways to multiply a sample's features with each other in C++, each over register tiles of the wanted pairs only.

``panel``  features transposed, so that a register holds one depth of several features; rank-1 updates of a tile.
``dots``   a register holds several depths of one feature; the tile's registers are summed across at the end.
``lanes``  a register holds several samples: no lane is ever wasted, but the samples have to be transposed both ways.

The products land in ``zs``: element ``i * stride + j`` for the wanted pairs (times the lanes, for ``lanes``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .vectors import Vectors

# For each feature, the features that its products with are wanted; rows with none are absent.
Wanted = Mapping[int, frozenset[int]]


@dataclass(frozen=True)
class Tiling(ABC):
    """``rows`` × ``columns``: features by registers for ``panel``, features by features otherwise."""

    vectors: Vectors
    features: int
    width: int
    rows: int
    columns: int

    @property
    def lanes(self) -> int:
        return self.vectors.lanes

    @property
    def depth(self) -> int:
        """The width, padded to whole registers."""
        return _padded(self.width, self.lanes)

    @property
    def reach(self) -> int:
        """Features that tiles read, the last one repeated where there are fewer."""
        return self.features

    @property
    @abstractmethod
    def stride(self) -> int:
        """Elements from one row of products to the next."""

    @property
    @abstractmethod
    def products_size(self) -> int:
        """Elements of ``zs``."""

    @property
    @abstractmethod
    def scratch(self) -> str:
        """Declarations of what the tiles need beside ``zs``, once per thread."""

    @abstractmethod
    def functions(self, wanted: Wanted) -> Iterator[str]:
        """The functions that ``body`` calls."""

    @abstractmethod
    def body(self, wanted: Wanted) -> Iterator[str]:
        """Statements that fill ``zs`` from ``rows[...]``, pointers to ``depth`` readable elements of each feature."""

    def _blocks(self, wanted: Wanted, columns: int) -> Iterator[tuple[int, int, list[int]]]:
        """First row, number of rows, and the wanted columns in units of ``columns``, for each block of ``rows``."""
        for first in range(0, self.features, self.rows):
            count = min(self.rows, self.features - first)
            units = {j // columns for i in range(first, first + count) for j in wanted.get(i, ())}
            if units:
                yield first, count, sorted(units)


@dataclass(frozen=True)
class Panel(Tiling):
    @property
    def stride(self) -> int:
        return _padded(self.features, self.lanes)

    @property
    def products_size(self) -> int:
        return self.features * self.stride

    @property
    def scratch(self) -> str:
        return f"alignas(64) {self.vectors.scalar} panel[{self.depth * self.stride}];"

    def functions(self, wanted: Wanted) -> Iterator[str]:
        yield self._pack(self.lanes)
        if self.features % self.lanes:
            yield self._pack(self.features % self.lanes)
        for rows, columns in sorted({(rows, columns) for _, rows, _, columns in self._tiles(wanted)}):
            yield self._tile(rows, columns)

    def body(self, wanted: Wanted) -> Iterator[str]:
        used = {unit for _, _, first, count in self._tiles(wanted) for unit in range(first, first + count)}
        used |= {i // self.lanes for i in wanted}
        for unit in sorted(used):
            count = min(self.lanes, self.features - unit * self.lanes)
            yield f"for (int64_t d = 0; d < {self.depth}; d += {self.lanes})"
            yield f"  pack{count}(rows + {unit * self.lanes}, d, panel + d * {self.stride} + {unit * self.lanes});"
        for row, rows, unit, units in self._tiles(wanted):
            at = unit * self.lanes
            yield f"tile{rows}x{units}(panel + {row}, panel + {at}, zs + {row * self.stride + at});"

    def _tiles(self, wanted: Wanted) -> Iterator[tuple[int, int, int, int]]:
        for row, rows, units in self._blocks(wanted, self.lanes):
            first = units[0]
            while first <= units[-1]:
                count = min(self.columns, units[-1] + 1 - first)
                yield row, rows, first, count
                first += count

    def _pack(self, count: int) -> str:
        t = self.vectors.scalar
        lines = [
            f"static inline void pack{count}(const {t}* const* rows, int64_t d, {t}* to) {{",
            f"  V a[{self.lanes}];",
        ]
        lines += [f"  a[{k}] = {f'load(rows[{k}] + d)' if k < count else 'V{}'};" for k in range(self.lanes)]
        lines.append("  transpose(a);")
        lines += [f"  store(to + {k * self.stride}, a[{k}]);" for k in range(self.lanes)]
        return "\n".join([*lines, "}"])

    def _tile(self, rows: int, columns: int) -> str:
        t = self.vectors.scalar
        lines = [f"static inline void tile{rows}x{columns}(const {t}* left, const {t}* right, {t}* to) {{"]
        lines += [f"  V s{i}_{j} = {{}};" for i in range(rows) for j in range(columns)]
        lines.append(f"  for (int64_t d = 0; d < {self.width}; d++, left += {self.stride}, right += {self.stride}) {{")
        lines += [f"    V x{j} = load(right + {j * self.lanes});" for j in range(columns)]
        for i in range(rows):
            lines.append(
                f"    {{ const {t} y = left[{i}];" + "".join(f" s{i}_{j} += y * x{j};" for j in range(columns)) + " }"
            )
        lines.append("  }")
        lines += [
            f"  store(to + {i * self.stride + j * self.lanes}, s{i}_{j});" for i in range(rows) for j in range(columns)
        ]
        return "\n".join([*lines, "}"])


@dataclass(frozen=True)
class Dots(Tiling):
    @property
    def reach(self) -> int:
        return max(_padded(self.features, self.rows), _padded(self.features, self.columns))

    @property
    def stride(self) -> int:
        return _padded(self.features, self.columns)

    @property
    def products_size(self) -> int:
        return _padded(self.features, self.rows) * self.stride

    @property
    def scratch(self) -> str:
        return ""

    def functions(self, wanted: Wanted) -> Iterator[str]:
        t = self.vectors.scalar
        names = [f"s{i}_{j}" for i in range(self.rows) for j in range(self.columns)]
        lines = [f"static inline void tile(const {t}* const* left, const {t}* const* right, {t}* to) {{"]
        lines += [f"  V {name} = {{}};" for name in names]
        lines.append(f"  for (int64_t d = 0; d < {self.depth}; d += {self.lanes}) {{")
        lines += [f"    V x{j} = load(right[{j}] + d);" for j in range(self.columns)]
        for i in range(self.rows):
            updates = "".join(f" s{i}_{j} += y * x{j};" for j in range(self.columns))
            lines.append(f"    {{ V y = load(left[{i}] + d);{updates} }}")
        lines.append("  }")
        lines.append(f"  alignas(64) {t} t[{_padded(len(names), self.lanes)}];")
        for first in range(0, len(names), self.lanes):
            group = names[first : first + self.lanes]
            spare = [f"e{first}_{k}" for k in range(self.lanes - len(group))]
            lines += [f"  V {name} = {{}};" for name in spare]
            lines += [f"  {line}" for line in self.vectors.sums(group + spare)]
            lines.append(f"  store(t + {first}, {group[0]});")
        size = self.columns * self.vectors.item_bytes
        lines += [
            f"  __builtin_memcpy(to + {i * self.stride}, t + {i * self.columns}, {size});" for i in range(self.rows)
        ]
        yield "\n".join([*lines, "}"])

    def body(self, wanted: Wanted) -> Iterator[str]:
        for row, _, units in self._blocks(wanted, self.columns):
            for unit in units:
                at = unit * self.columns
                yield f"tile(rows + {row}, rows + {at}, zs + {row * self.stride + at});"


@dataclass(frozen=True)
class Lanes(Tiling):
    """One block is ``lanes`` samples; ``rows[feature * lanes + sample]``."""

    @property
    def stride(self) -> int:
        return self.features

    @property
    def products_size(self) -> int:
        return self.features * self.features * self.lanes

    @property
    def scratch(self) -> str:
        return f"alignas(64) {self.vectors.scalar} samples[{self.features * self.depth * self.lanes}];"

    def functions(self, wanted: Wanted) -> Iterator[str]:
        t = self.vectors.scalar
        loads = "".join(f" a[{k}] = load(rows[{k}] + d);" for k in range(self.lanes))
        stores = "".join(f" store(to + {k * self.lanes}, a[{k}]);" for k in range(self.lanes))
        yield (f"static inline void pack(const {t}* const* rows, int64_t d, {t}* to) {{\n"
               f"  V a[{self.lanes}];\n {loads}\n  transpose(a);\n {stores}\n}}")  # fmt: skip
        shapes = {shape for _, _, shape in self._tiles(wanted)}
        for number, shape in enumerate(sorted(shapes)):
            yield self._tile(number, shape)

    def body(self, wanted: Wanted) -> Iterator[str]:
        tiles = list(self._tiles(wanted))
        numbers = {shape: number for number, shape in enumerate(sorted({shape for _, _, shape in tiles}))}
        yield f"for (int64_t i = 0; i < {self.features}; i++)"
        yield f"  for (int64_t d = 0; d < {self.depth}; d += {self.lanes})"
        yield f"    pack(rows + i * {self.lanes}, d, samples + (i * {self.depth} + d) * {self.lanes});"
        step = self.depth * self.lanes
        for row, column, shape in tiles:
            to = (row * self.features + column) * self.lanes
            yield f"tile{numbers[shape]}(samples + {row * step}, samples + {column * step}, zs + {to});"

    def _tiles(self, wanted: Wanted) -> Iterator[tuple[int, int, tuple[tuple[int, int], ...]]]:
        """First row, first column, and the wanted places of each tile."""
        for row, rows, units in self._blocks(wanted, self.columns):
            for unit in units:
                column = unit * self.columns
                places = tuple(
                    (i, j)
                    for i in range(rows)
                    for j in range(self.columns)
                    if column + j in wanted.get(row + i, frozenset())
                )
                yield row, column, places

    def _tile(self, number: int, places: tuple[tuple[int, int], ...]) -> str:
        t, step = self.vectors.scalar, self.depth * self.lanes
        lines = [f"static inline void tile{number}(const {t}* left, const {t}* right, {t}* to) {{"]
        lines += [f"  V s{i}_{j} = {{}};" for i, j in places]
        lines.append(f"  for (int64_t d = 0; d < {self.width * self.lanes}; d += {self.lanes}) {{")
        lines += [f"    V x{j} = load(right + {j * step} + d);" for j in sorted({j for _, j in places})]
        for row in sorted({i for i, _ in places}):
            updates = "".join(f" s{i}_{j} += y * x{j};" for i, j in places if i == row)
            lines.append(f"    {{ V y = load(left + {row * step} + d);{updates} }}")
        lines.append("  }")
        lines += [f"  store(to + {(i * self.features + j) * self.lanes}, s{i}_{j});" for i, j in places]
        return "\n".join([*lines, "}"])


TILINGS: dict[str, type[Tiling]] = {"panel": Panel, "dots": Dots, "lanes": Lanes}


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
