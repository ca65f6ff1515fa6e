"""What a stream asks of the speech decoder, and how its event loop gets the answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from serve_app.models.event_loops import post

_Settled = tuple["asyncio.Future[np.ndarray]", np.ndarray | Exception]


@dataclass(slots=True, eq=False)
class DecodeJob:
    """Frames of one stream that wait for the decoder, done in one or more pieces.

    codes: int64 [T, Q], T >= 1.
    future: gets int16 [T * samples_per_frame]; of the loop that also releases the stream's slot.
    discard: only advance the state; the result is empty.
    primed: of one that is discarded, how many frames at its beginning advance the transformer's
        part of the state only; None: none, so that it takes many steps.
    final: nothing follows, so that the state behind these frames does not matter.
    reset: put the state at the start of a stream first; the runner's to say.
    """

    codes: np.ndarray
    future: "asyncio.Future[np.ndarray]"
    discard: bool = False
    primed: int | None = None
    final: bool = False
    reset: bool = False
    submitted_s: float = 0.0
    next_frame: int = 0
    samples: list[np.ndarray] = field(default_factory=list)

    @property
    def to_prime(self) -> int:
        """Frames that are primed next, before others are decoded."""
        return max(0, (self.primed or 0) - self.next_frame)


def settle(results: Sequence[tuple[DecodeJob, np.ndarray | Exception]]) -> None:
    """Give jobs their results, those of a loop in one call of it."""
    post([(job.future.get_loop(), (job.future, result)) for job, result in results], _set_all)


def joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Samples in one array, int16 [N]; no copy of a single piece."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int16)


def _set_all(batch: list[_Settled]) -> None:
    for future, result in batch:
        if future.done():  # its stream has gone
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
