"""What Dynamo calls before it is known which of several functions is the fastest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .step import Function

logger = logging.getLogger(__name__)

# The fastest for these inputs, which it leaves as they are; what it raises ends the comparison.
Decide = Callable[[Function, Sequence[Any]], Function]


class FirstCall:
    """Calls ``compiled``, and from the first call that may take its time on what ``decide`` made of it."""

    def __init__(self, compiled: Function, decide: Decide) -> None:
        self._compiled, self._decide = compiled, decide
        self._lock = threading.Lock()
        self._call: Function = self._first

    def __call__(self, *inputs: Any) -> Any:
        return self._call(*inputs)

    def _first(self, *inputs: Any) -> Any:
        if _is_capturing() or not self._lock.acquire(blocking=False):
            return self._compiled(*inputs)
        try:
            self._call = self._decide(self._compiled, inputs)
        except Exception as error:  # noqa: BLE001 - the boundary to the user's process: a look aside must not end a call
            logger.debug("nothing was compared: %s: %s", type(error).__name__, error)
            self._call = self._compiled
        finally:
            self._lock.release()
        return self._call(*inputs)


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
