"""What a stream asks of the speech decoder, and how it gets the answer: on a thread or a loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from serve_app.models.event_loops import post

_Settled = tuple["asyncio.Future[np.ndarray]", np.ndarray | Exception]


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
    elsewhere: list[tuple[asyncio.AbstractEventLoop, _Settled]] = []
    for job, result in results:
        if isinstance(job.future, asyncio.Future):
            elsewhere.append((job.future.get_loop(), (job.future, result)))
        elif job.future.set_running_or_notify_cancel():
            _set(job.future, result)
    post(elsewhere, _set_all)


def joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Samples in one array, int16 [N]; no copy of a single piece."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int16)


def _set_all(batch: list[_Settled]) -> None:
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
