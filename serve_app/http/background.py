"""Speech that nobody listens to while it is made: it waits for room and gives way to listeners.

Batches and long texts share a few streams per ingress. Ingress and talker keep a part of their
places free of them (`serve_app/load/admission.py`); where a listener is refused nevertheless, this
ingress stops what it has in the background and asks again for the listener. How long a request
waited for room is in its record.
"""

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from serve_app import metrics
from serve_app.errors import Overloaded, ServerDraining, StageUnavailable
from serve_app.http.observe.record import current
from serve_app.resumption import Speak
from serve_app.types import PcmChunk, SpeechRequest

_FIRST_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 15.0
# How often a listener asks again once the background has made room, and how long a place takes to
# be free on the way through the stages.
_LIVE_ATTEMPTS: Final = 4
_ROOM_S: Final = 0.05
# Requests in the background that wait for each that may be made at a time. They are held in memory.
_WAITING_EACH: Final = 16
_RETRY_S: Final = 10.0

logger = logging.getLogger(__name__)


class Background:
    """The streams of one ingress, divided into those of listeners and those in the background.

    Each model has its own: what is made of one waits for no other, and gives way to its listeners.

    Args:
        streams: how many of a model are made in the background at a time.
        recorder: told of each request of a listener that is refused in the end.
    """

    def __init__(
        self,
        speak: Speak,
        streams: int,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        recorder: metrics.Recorder | None = None,
    ) -> None:
        self._speak = speak
        self._recorder = recorder or metrics.NoRecorder()
        self._clock = clock
        self._max_waiting = _WAITING_EACH * streams
        self._waiting: dict[str, int] = {}
        self._places = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(streams))
        self._sleep = sleep
        self._running = defaultdict[str, set[asyncio.Task[list[PcmChunk]]]](set)

    def look(self) -> None:
        """Before anything of a request for the background is read.

        Raises:
            Overloaded: many wait already; it says when to come again.
        """
        # It may be for any model, so that all of them together have the room of all.
        waiting = sum(self._waiting.values())
        if waiting >= self._max_waiting * max(1, len(self._waiting)):
            raise Overloaded(f"{waiting} texts wait to be spoken already.", _RETRY_S)

    async def live(self, request: SpeechRequest) -> AsyncGenerator[PcmChunk, None]:
        """A `Speak` for listeners, which is refused only where no background work is in its way."""
        attempt, came_s = 0, self._clock()
        while True:
            begun = False
            current().waited_s += self._clock() - came_s if attempt else 0.0
            came_s = self._clock()
            try:
                async with aclosing(self._speak(request)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except Overloaded as error:
                # Asked again after a first one made room: the next one may need more.
                attempt += 1
                if begun:
                    raise
                if attempt >= _LIVE_ATTEMPTS or not await self._gave_way(request.model, attempt):
                    is_late = error.stage is not None
                    metric = metrics.REFUSED_BY_STAGES if is_late else metrics.REFUSED_AT_INGRESS
                    self._recorder.count(metric, model=request.model)
                    raise
            await self._sleep(_ROOM_S)

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[PcmChunk, None]:
        """A `Speak` whose audio comes when all of it is made; an interrupted one is made again.

        A full or absent stage is waited for, without an end: who cannot wait for ever cancels.
        """
        for chunk in await self._whole(replace(request, background=True, ahead_s=None)):
            yield chunk

    async def _whole(self, request: SpeechRequest) -> list[PcmChunk]:
        pause_s, came_s = _FIRST_PAUSE_S, self._clock()
        model = request.model
        running, places = self._running[model], self._places[model]
        self._waiting[model] = self._waiting.get(model, 0) + 1
        try:
            await places.acquire()
        finally:
            self._waiting[model] -= 1
        try:
            while True:
                current().waited_s += self._clock() - came_s
                making = asyncio.create_task(self._attempt(request))
                running.add(making)
                try:
                    await asyncio.wait({making})
                finally:
                    running.discard(making)
                    making.cancel()
                    await asyncio.gather(making, return_exceptions=True)
                if making.cancelled():
                    reason, wait_s = "it gave way to a listener", pause_s
                else:
                    try:
                        return making.result()
                    except Overloaded as error:
                        reason, wait_s = str(error), max(pause_s, error.retry_after_s)
                    except ServerDraining:
                        raise
                    except StageUnavailable as error:
                        reason, wait_s = str(error), pause_s
                came_s, pause_s = self._clock(), min(2 * pause_s, _MAX_PAUSE_S)
                logger.info("%s: in the background, waiting: %s", request.request_id, reason)
                # Not all at once, where several wait for the same.
                await self._sleep(min(wait_s, _MAX_PAUSE_S) * random.uniform(0.75, 1.25))
        finally:
            places.release()

    async def _attempt(self, request: SpeechRequest) -> list[PcmChunk]:
        async with aclosing(self._speak(request)) as chunks:
            return [chunk async for chunk in chunks]

    async def _gave_way(self, model: str, attempt: int) -> bool:
        """Stop what is made of a model in the background; whether that may have made room."""
        stopped = list(self._running[model])
        for making in stopped:
            making.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)
        return bool(stopped) or attempt > 1
