"""What went wrong without stopping the user, said once a process."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

_said: set[str] = set()


def warn_once(consequence: str, error: Exception) -> None:
    """Logs ``consequence`` and the first line of ``error``; where debugging is logged, with its traceback."""
    text = f"{consequence}: {type(error).__name__}: {error}".splitlines()[0]
    if text not in _said:
        _said.add(text)
        logger.warning("%s", text, exc_info=error if logger.isEnabledFor(logging.DEBUG) else None)
