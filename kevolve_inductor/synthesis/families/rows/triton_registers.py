"""Selections among packed values in Triton: each thread's values are variables of their own, exchanged straight-line.

A tensor ``[rows, lanes, deep]`` becomes ``deep`` tensors ``[rows, lanes]``, so that a network may have any comparators,
reversing a run costs nothing, and what no output depends on is not computed at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .networks import merging, sorting

if TYPE_CHECKING:
    from .triton_writer import TritonWriter


class Registers:
    """Variables of ``lanes`` threads for each of ``rows``; prints statements through ``writer``."""

    def __init__(self, writer: TritonWriter, rows: int, lanes: int) -> None:
        self.writer, self.rows, self.lanes = writer, rows, lanes
        self._lane = ""

    def taken(self, text: str, deep: int) -> list[str]:
        """The variables of a tensor ``[rows, lanes, deep]``, in order."""
        if deep == 1:
            return [self._named(f"tl.reshape({text}, [{self.rows}, {self.lanes}])")]
        w = self.writer
        half = deep // 2
        if deep > 2:
            text = f"tl.permute(tl.reshape({text}, [{self.rows}, {self.lanes}, 2, {half}]), (0, 1, 3, 2))"
        lower, upper = w.fresh("r"), w.fresh("r")
        w.add(f"{lower}, {upper} = tl.split({text})")
        return [lower, upper] if half == 1 else self.taken(lower, half) + self.taken(upper, half)

    def joined(self, values: list[str], shape: tuple[int, ...]) -> str:
        """Variables of ``shape`` as the last axis of one tensor ``[*shape, len(values)]``."""
        if len(values) == 1:
            return self._named(f"tl.reshape({values[0]}, {[*shape, 1]})")
        axes = [*range(len(shape)), len(shape) + 1, len(shape)]
        width, parts = 1, values
        while len(parts) > 1:
            pairs = [f"tl.join({a}, {b})" for a, b in zip(parts[::2], parts[1::2], strict=True)]
            width *= 2
            if width > 2:
                pairs = [f"tl.reshape(tl.permute({pair}, {tuple(axes)}), {[*shape, width]})" for pair in pairs]
            parts = [self._named(pair) for pair in pairs]
        return parts[0]

    def sort(self, values: list[str]) -> list[str]:
        """All lanes' values in order: a lane's first one stands behind the last one of the lane before."""
        values = self._network(values, sorting(len(values)))
        for step in range(self.lanes.bit_length() - 1):
            # A lane's run and the next lane's one, backwards, are bitonic.
            values = self._halved(values[::-1], values, 2 ** (step + 1) - 1, 2**step)
            for distance in (2**k for k in reversed(range(step))):
                values = self._halved(values, values, distance, distance)
            values = self._network(values, merging(len(values)))
        return values

    def first_of_thread(self, values: list[str], wanted: int) -> list[str]:
        """Each thread's first ``wanted`` values, a power of two, in order."""
        runs = [values[start : start + wanted] for start in range(0, len(values), wanted)]
        runs = [self._network(run, sorting(wanted)) for run in runs]
        while len(runs) > 1:
            runs = [self.first_of_two(a, b) for a, b in zip(runs[::2], runs[1::2], strict=True)]
        return runs[0]

    def first_of_two(self, first: list[str], second: list[str]) -> list[str]:
        """The first half, in order, of two runs in order."""
        lower = [self._named(f"kv_lower({a}, {b})") for a, b in zip(first, second[::-1], strict=True)]
        return self._network(lower, merging(len(lower)))

    def first_of_lanes(self, values: list[str]) -> list[str]:
        """The first values, in order, of all lanes' runs: one tensor ``[rows]`` for each."""
        for step in range(self.lanes.bit_length() - 1):
            values = self.first_of_two(values, [self._other(value, 2**step) for value in values])
        return [self._named(f"tl.min({value}, 1)") for value in values]

    def _network(self, values: list[str], comparators: list[tuple[int, int]]) -> list[str]:
        values = list(values)
        for i, j in comparators:
            lower, upper = self.writer.fresh("r"), self.writer.fresh("r")
            self.writer.add(f"{lower}, {upper} = kv_exchange({values[i]}, {values[j]})")
            values[i], values[j] = lower, upper
        return values

    def _halved(self, theirs: list[str], own: list[str], distance: int, bit: int) -> list[str]:
        """Lanes exchange with those at ``lane ^ distance``; the one without ``bit`` keeps what is smaller."""
        others = [self._other(value, distance) for value in theirs]
        lower = f"(({self._lane} & {bit}) == 0)"
        return [self._named(f"kv_keep({a}, {b}, {lower})") for a, b in zip(own, others, strict=True)]

    def _other(self, value: str, distance: int) -> str:
        if not self._lane:
            shape = f"[{self.rows}, {self.lanes}]"
            self._lane = self._named(f"tl.zeros({shape}, tl.int32) + tl.arange(0, {self.lanes})[None, :]")
        return self._named(f"tl.gather({value}, {self._lane} ^ {distance}, 1)")

    def _named(self, text: str) -> str:
        name = self.writer.fresh("r")
        self.writer.add(f"{name} = {text}")
        return name
