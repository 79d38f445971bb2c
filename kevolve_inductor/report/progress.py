"""How far a search is. The library announces; whoever observes may draw."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TextIO

_BAR_WIDTH = 24


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` regions are decided; ``title`` is being searched, ``trials`` tried, ``best`` its speedup so far."""

    done: int
    total: int
    title: str
    trials: int = 0
    best: float = 0.0


Observer = Callable[[Progress], None]
_OBSERVER: ContextVar[Observer | None] = ContextVar("kevolve_progress", default=None)


def announce(progress: Progress) -> None:
    observer = _OBSERVER.get()
    if observer is not None:
        observer(progress)


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call ``observer`` with every :class:`Progress` of compiles inside the block (in this thread or task)."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


@contextmanager
def progress_bar(stream: TextIO | None = None) -> Iterator[None]:
    """Draw a bar while models compile inside the block: in place on a terminal, one line per region elsewhere."""
    out = sys.stderr if stream is None else stream
    terminal = out.isatty()
    shown = ""

    def draw(progress: Progress) -> None:
        nonlocal shown
        if terminal:
            out.write("\r\x1b[2K" + _line(progress))
            out.flush()
        elif progress.title != shown:
            shown = progress.title
            out.write(f"[{progress.done}/{progress.total}] {progress.title}\n")

    with observe(draw):
        yield
    if terminal:
        out.write("\r\x1b[2K")
        out.flush()


def _line(progress: Progress) -> str:
    filled = _BAR_WIDTH * progress.done // max(progress.total, 1)
    bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
    best = f", best {progress.best:.2f}×" if progress.best else ""
    return f"{bar} {progress.done}/{progress.total} {progress.title} ({progress.trials} trials{best})"
