"""Whose kernels may run. A stored kernel runs in the user's own process, so the user says whose.

Everything in the store has a source: ``"local"`` is what this user's own searches found there, any other name was given
when a bundle was imported. The setting ``trust`` lists sources, and cache keys whose entry may be anyone's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..exc import SettingsError
from .entry import LOCAL, Entry

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


def trusted(entry: Entry, trust: Sequence[str]) -> bool:
    """Whether ``trust`` lets the entry decide about its region. A baseline's verdict is a decision too."""
    return entry.source in trust or entry.key in trust


def source_name(text: str) -> str:
    """``text``, if a source that was imported can be called so. Raises ``SettingsError``."""
    if text == LOCAL or not _NAME.fullmatch(text):
        raise SettingsError(
            f"a source cannot be called {text!r}: up to 48 letters, digits, dots, dashes and underscores, and not {LOCAL!r}"
        )
    return text


def how_to_trust(entry: Entry) -> str:
    return f"to run it, add {entry.source!r} (all of that source) or its key to the setting trust"
