"""Evaluators kept for a while: a model is many graphs, and starting worker processes takes longer than judging a kernel."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from .client import WorkerEvaluator

logger = logging.getLogger(__name__)

# Between the graphs of one model lie seconds. Idle workers hold a context on the device.
_IDLE_S = 30.0

_lock = threading.Lock()
_kept: dict[Hashable, tuple[WorkerEvaluator, threading.Timer]] = {}


@contextmanager
def kept_evaluator(
    key: Hashable, make: Callable[[], WorkerEvaluator], idle_s: float = _IDLE_S
) -> Iterator[WorkerEvaluator]:
    """The evaluator that was last used under ``key``, or a new one; kept for ``idle_s`` seconds unless something is raised.

    ``key`` holds all that ``make`` and the worker processes' environment depend on. One in use is not lent twice.
    """
    evaluator = _take(key) or make()
    try:
        yield evaluator
    except BaseException:
        evaluator.close()
        raise
    if _may_rest(evaluator):
        _keep(key, evaluator, idle_s)
    else:
        evaluator.close()


def close_kept() -> None:
    """End all workers that wait for another graph."""
    for key in list(_kept):
        _end(key)


def _may_rest(evaluator: WorkerEvaluator) -> bool:
    try:
        return evaluator.rest()
    except Exception as error:  # noqa: BLE001 - what cannot be kept is ended; the result of this graph stands
        logger.debug("the evaluation workers are not kept: %s", error)
        return False


def _take(key: Hashable) -> WorkerEvaluator | None:
    with _lock:
        found = _kept.pop(key, None)
    if found is None:
        return None
    found[1].cancel()
    return found[0]


def _keep(key: Hashable, evaluator: WorkerEvaluator, idle_s: float) -> None:
    timer = threading.Timer(idle_s, _end, (key,))
    timer.daemon = True
    with _lock:
        before = _kept.pop(key, None)
        _kept[key] = (evaluator, timer)
    timer.start()
    if before is not None:
        before[1].cancel()
        before[0].close()


def _end(key: Hashable) -> None:
    evaluator = _take(key)
    if evaluator is not None:
        evaluator.close()
