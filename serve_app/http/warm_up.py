"""The synthesis that an ingress replica makes before it calls itself ready."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

from serve_app.errors import SpeechError
from serve_app.http.speech.request import engine_request_id
from serve_app.pipeline import join
from serve_app.resumption import Speak
from serve_app.types import ModelCard, NamedVoice, SpeechRequest

_FRAMES: Final = 4
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0)

logger = logging.getLogger(__name__)


class WarmUp:
    """One short synthesis per model through all stages, repeated until it passes."""

    def __init__(
        self,
        speak: Speak,
        cards: Sequence[ModelCard],
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._speak = speak
        self._cards = cards
        self._sleep = sleep
        self.reason: str | None = "the first synthesis has not finished yet"

    @property
    def passed(self) -> bool:
        return self.reason is None

    async def run(self) -> None:
        for card in self._cards:
            await self._warm(card)
        self.reason = None

    async def _warm(self, card: ModelCard) -> None:
        attempt = 0
        while True:
            try:
                async with aclosing(self._speak(_request(card))) as chunks:
                    await join(chunks)
                return
            except SpeechError as error:  # a replica that takes its time to start, above all
                self.reason = f"the first synthesis failed and is tried again: {error}"
                logger.info("warm-up of %s: %s; trying again", card.name, error)
            except Exception as error:  # whatever it is: not ready, and the reason is shown
                self.reason = f"the first synthesis failed: {type(error).__name__}"
                logger.warning("warm-up of %s failed, trying again", card.name, exc_info=error)
            await self._sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
            attempt += 1


def _request(card: ModelCard) -> SpeechRequest:
    return SpeechRequest(
        request_id=engine_request_id("warm-up"),
        model=card.name,
        text="Hello.",
        voice=NamedVoice(card.voices[0]) if card.voices else None,
        language="auto",
        seed=0,
        instructions="A calm voice." if "description" in card.voice_sources else None,
        max_new_tokens=_FRAMES,
    )
