"""From the engine's thread to the event loops: items of each stream in order, in one call per loop.

First audio that is still being made on the device is waited for on a thread of its own, so that the
engine goes on; what its stream makes meanwhile is held back until it is there.
"""

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from serve_app.errors import StageFailed
from serve_app.models.event_loops import post
from serve_app.types import CodecFrames

logger = logging.getLogger(__name__)

Item = CodecFrames | Exception


class Samples(Protocol):
    """The audio of some rows of a step, perhaps still being made."""

    def fetch(self) -> Mapping[int, np.ndarray]:
        """Wait for it; int16 [samples_per_frame] by row."""
        ...


@dataclass(slots=True, eq=False)
class TalkerStream:
    """One running request, owned by the event loop that consumes it.

    held: items that come after first audio which is not there yet.
    begun_s: when its prefill was launched, by `time.perf_counter`; there before its first frame.
    """

    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[Item]"
    held: list[Item] | None = None
    begun_s: float | None = None


class Outbox:
    """Delivers; `deliver` and `deliver_audio` belong to one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix="first-audio")

    def deliver(self, items: Iterable[tuple[TalkerStream, Item]]) -> None:
        """Hand items to their streams' loops; failures pass by what is held back."""
        _post(
            (stream, item)
            for stream, item in items
            if isinstance(item, Exception) or not self._hold(stream, item)
        )

    def deliver_audio(
        self,
        samples: Samples,
        items: Sequence[tuple[TalkerStream, int, CodecFrames]],
        *,
        wait: bool,
    ) -> None:
        """Hand first items to their streams, each with the samples of its row.

        Args:
            samples: fetched even if `items` is empty.
            items: stream, row of the step, and the item without its samples.
            wait: on this thread.
        """
        if wait:
            found = samples.fetch()
            self.deliver((stream, replace(item, samples=found[row])) for stream, row, item in items)
            return
        for stream, _, _ in items:
            stream.held = []
        self._waiting.submit(self._deliver_later, samples, items)

    def close(self) -> None:
        """Wait for the thread; idempotent."""
        self._waiting.shutdown()

    def _hold(self, stream: TalkerStream, item: Item) -> bool:
        if stream.held is None:  # only this thread begins to hold back
            return False
        with self._lock:
            if stream.held is None:
                return False
            stream.held.append(item)
            return True

    def _deliver_later(
        self, samples: Samples, items: Sequence[tuple[TalkerStream, int, CodecFrames]]
    ) -> None:
        firsts: list[Item]
        try:
            found = samples.fetch()
            firsts = [replace(item, samples=found[row]) for _, row, item in items]
        except Exception as error:
            logger.exception("first audio is lost")
            firsts = [StageFailed(f"the speech decoder failed: {error!r}") for _ in items]
        ready: list[tuple[TalkerStream, Item]] = []
        with self._lock:
            for (stream, _, _), first in zip(items, firsts, strict=True):
                assert stream.held is not None
                ready += [(stream, item) for item in (first, *stream.held)]
            # Before anything of these streams can pass by.
            _post(ready)
            for stream, _, _ in items:
                stream.held = None


def _post(items: Iterable[tuple[TalkerStream, Item]]) -> None:
    post(((stream.loop, (stream, item)) for stream, item in items), _put_all)


def _put_all(items: list[tuple[TalkerStream, Item]]) -> None:
    for stream, item in items:
        stream.queue.put_nowait(item)
