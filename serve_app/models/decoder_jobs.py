"""What a stream asks of the speech decoder, and how it gets the answer: on a thread or a loop."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """Frames of one stream that wait for the decoder, done in one or more pieces."""

    codes: np.ndarray
    reset: bool
    discard: bool
    final: bool
    future: "Future[np.ndarray] | asyncio.Future[np.ndarray]"
    submitted_s: float = 0.0
    next_frame: int = 0
    samples: list[np.ndarray] = field(default_factory=list)


def settle(results: Sequence[tuple[Job, np.ndarray | Exception]]) -> None:
    """Give jobs their results, those of an event loop in one call."""
    batches: defaultdict[asyncio.AbstractEventLoop, list[Any]] = defaultdict(list)
    for job, result in results:
        if isinstance(job.future, asyncio.Future):
            batches[job.future.get_loop()].append((job.future, result))
        elif job.future.set_running_or_notify_cancel():
            _set(job.future, result)
    for loop, batch in batches.items():
        try:
            loop.call_soon_threadsafe(_set_all, batch)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("dropped %d results for a closed event loop", len(batch))


def _set_all(batch: "list[tuple[asyncio.Future[np.ndarray], np.ndarray | Exception]]") -> None:
    for future, result in batch:
        if not future.done():  # else its stream has gone
            _set(future, result)


def _set(
    future: "Future[np.ndarray] | asyncio.Future[np.ndarray]", result: np.ndarray | Exception
) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
