"""What an ingress replica does before it calls itself ready: learn the model, and make it speak."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

import numpy as np

from serve_app.errors import SpeechError
from serve_app.http.speech.request import engine_request_id
from serve_app.pipeline import join
from serve_app.resumption import Speak
from serve_app.types import ClonedVoice, ModelCard, NamedVoice, SpeechRequest, Voice

_FRAMES: Final = 4
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0)

T = TypeVar("T")

logger = logging.getLogger(__name__)


class WarmUp:
    """Learns what is served and makes one short synthesis through all stages.

    Args:
        ask: for the card of what the stages serve, and makes it known.
        speak: through all stages.
        sleep: between attempts, which go on until one has passed.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[ModelCard]],
        speak: Speak,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._ask = ask
        self._speak = speak
        self._sleep = sleep
        self.reason: str | None = "the stages are starting: none has said yet what it serves"

    @property
    def passed(self) -> bool:
        return self.reason is None

    async def run(self) -> None:
        card = await self._repeated(self._ask, "asking the stages for their model")
        self.reason = "the first synthesis has not finished yet"
        await self._repeated(partial(self._synthesize, card), "the first synthesis")
        self.reason = None

    async def run_again(self) -> None:
        """Ask anew, of stages that serve what they did before; it stays passed, however often they
        have to be asked.
        """
        if self.passed:
            await self._repeated(self._ask, "asking the stages for their model", keeps=True)
        else:
            await self.run()

    async def _synthesize(self, card: ModelCard) -> None:
        async with aclosing(self._speak(_request(card))) as chunks:
            await join(chunks)

    async def _repeated(
        self, step: Callable[[], Awaitable[T]], what: str, *, keeps: bool = False
    ) -> T:
        """The result of `step` once it passes; `keeps`: until then nothing is said against it."""
        for attempt in count():
            try:
                return await step()
            except SpeechError as error:  # a replica that takes its time to start, above all
                reason = f"{what} failed and is tried again: {error}"
                logger.info("%s: %s; trying again", what, error)
            except Exception as error:  # whatever it is: not ready, and the reason is shown
                reason = f"{what} failed: {type(error).__name__}"
                logger.warning("%s failed, trying again", what, exc_info=error)
            if not keeps:
                self.reason = reason
            await self._sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
        raise AssertionError("counting has no end")


def _request(card: ModelCard) -> SpeechRequest:
    return SpeechRequest(
        request_id=engine_request_id("warm-up"),
        model=card.name,
        text="Hello.",
        voice=_voice(card),
        language="auto",
        seed=0,
        instructions="A calm voice." if "description" in card.voice_sources else None,
        max_new_tokens=_FRAMES,
    )


def _voice(card: ModelCard) -> Voice | None:
    if card.speaker_vector_size is not None:
        # Nobody's: what it sounds like does not matter.
        return ClonedVoice(np.zeros(card.speaker_vector_size, np.float32), name="warm-up")
    return NamedVoice(card.voices[0]) if card.voices else None
