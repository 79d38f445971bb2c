"""C++ text over GCC's vector types: registers of ``lanes`` numbers, transposed and summed by shuffles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Vectors:
    """``held`` is the dtype of a lane: ``"float32"`` or ``"float64"``."""

    held: str
    size_bytes: int

    @property
    def scalar(self) -> str:
        return "double" if self.held == "float64" else "float"

    @property
    def item_bytes(self) -> int:
        return 8 if self.held == "float64" else 4

    @property
    def lanes(self) -> int:
        return self.size_bytes // self.item_bytes

    def prelude(self) -> str:
        """``V``, unaligned ``load`` and ``store``, and ``transpose`` of a square of registers."""
        t = self.scalar
        return f"""
typedef {t} V __attribute__((vector_size({self.size_bytes})));
typedef {t} VU __attribute__((vector_size({self.size_bytes}), aligned({self.item_bytes}), may_alias));
static inline V load(const {t}* from) {{ return *(const VU*)from; }}
static inline void store({t}* to, V value) {{ *(VU*)to = value; }}
{self._transpose()}"""

    def _transpose(self) -> str:
        """Eklundh's scheme: blocks of 1, 2, 4 … registers and lanes change places."""
        lines = ["static inline void transpose(V* a) {"]
        step = 1
        while step < self.lanes:
            kept = [k if not k & step else self.lanes + k - step for k in range(self.lanes)]
            crossed = [k + step if not k & step else self.lanes + k for k in range(self.lanes)]
            for first in (k for k in range(self.lanes) if not k & step):
                second = first + step
                lines.append(f"  {{ V x = {_shuffled(f'a[{first}]', f'a[{second}]', kept)};")
                lines.append(
                    f"    a[{second}] = {_shuffled(f'a[{first}]', f'a[{second}]', crossed)}; a[{first}] = x; }}"
                )
            step *= 2
        return "\n".join([*lines, "}"])

    def sums(self, names: list[str]) -> Iterator[str]:
        """Statements after which lane ``k`` of the register ``names[0]`` is the sum of all lanes of ``names[k]``."""
        step = self.lanes // 2
        while step:
            blend = [k if not k & step else self.lanes + k for k in range(self.lanes)]
            cross = [k + step if not k & step else self.lanes + k - step for k in range(self.lanes)]
            for low, high in zip(names[:step], names[step : 2 * step], strict=True):
                yield f"{low} = {_shuffled(low, high, blend)} + {_shuffled(low, high, cross)};"
            step //= 2


def _shuffled(one: str, two: str, lanes: list[int]) -> str:
    return f"__builtin_shufflevector({one}, {two}, {', '.join(map(str, lanes))})"
