"""A part of the cases for each of several processes, so that equal devices can share a run."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Number ``number`` of ``count``, from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``I/N``."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
        return cls(int(number), int(count))

    def of(self, items: Sequence[Item]) -> list[Item]:
        """This shard's items in their order. Each is in one shard, whichever process asks; neighbours, which cost much the
        same, are spread."""
        order = list(range(len(items)))
        random.Random(0).shuffle(order)
        return [items[at] for at in sorted(order[self.number - 1 :: self.count])]
