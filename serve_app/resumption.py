"""How the HTTP server gets its audio: one call per request, wherever the stages run."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import numpy as np

from serve_app.errors import StageUnavailable
from serve_app.types import PcmChunk, SpeechRequest

Speak = Callable[[SpeechRequest], AsyncGenerator[PcmChunk, None]]
# The second argument, int64 [T, Q] or None, are the codes of the audio that the listener has.
Resumable = Callable[[SpeechRequest, np.ndarray | None], AsyncGenerator[PcmChunk, None]]

logger = logging.getLogger(__name__)


def resumed(call: Resumable) -> Speak:
    """A `speak` that goes on at another replica, once per request, when the first one is lost.

    Chunks carry the codes they were made from, so the second call is told what the listener has
    and yields the rest. The router avoids the replica that has just been lost.
    """

    async def speak(request: SpeechRequest) -> AsyncGenerator[PcmChunk, None]:
        done: list[np.ndarray] = []
        for last_try in (False, True):
            try:
                async with aclosing(
                    call(request, np.concatenate(done) if done else None)
                ) as chunks:
                    async for chunk in chunks:
                        done.append(chunk.codes)
                        yield chunk
                return
            except StageUnavailable:
                if last_try:
                    raise
                logger.warning("%s: replica lost, going on at another", request.request_id)

    return speak
