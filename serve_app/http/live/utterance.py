"""The text of one utterance while it comes in, as the units that are spoken of it."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from serve_app.errors import InvalidRequest
from serve_app.http.speech.accept import Job
from serve_app.http.speech.checks import check_string, found_units, unit_room
from serve_app.text.incremental import Granularity, TextFeed
from serve_app.text.script import Unit
from serve_app.text.splitting import Piece

# A sentence that goes on for longer is cut: its listener waits for it.
_MAX_UNIT_FRAMES: Final = 300.0
# So much text is cut in less than 5 ms on a slow core.
_QUICK_CHARS: Final = 2048


@dataclass(frozen=True, slots=True)
class Arrived:
    """A unit whose text is whole.

    Attributes:
        gap_s: the silence behind it, beyond its own, where another unit follows.
    """

    unit: Unit
    gap_s: float


class Utterance:
    """Takes text in pieces and gives out units, to one who waits for them.

    Args:
        number: how many utterances of the session came before.
        job: what the text is spoken with; its own text means nothing.
        options: the request's `normalization_options`.
    """

    def __init__(
        self,
        number: int,
        job: Job,
        granularity: Granularity,
        options: Any,
        clock: Callable[[], float],
    ) -> None:
        self.number = number
        self.job = job
        self.is_settled = False
        # When its first unit was whole, by `clock`; the job's own time before.
        self.start_s = job.start_s
        self._clock = clock
        self._options = options
        self._room = unit_room(job.card)
        self._feed = TextFeed(job.request.language, granularity, min(_MAX_UNIT_FRAMES, self._room))
        self._arrived: deque[Arrived] = deque()
        self._num_arrived = 0
        self._changed = asyncio.Event()
        self._is_whole = False

    @property
    def num_waiting(self) -> int:
        """Characters that have come and are not being spoken yet."""
        return self._feed.num_waiting + sum(len(arrived.unit.text) for arrived in self._arrived)

    @property
    def is_over(self) -> bool:
        """Whether no unit will come any more."""
        return self._is_whole and not self._arrived

    async def append(self, text: str) -> None:
        """Take the next piece of the text.

        Raises:
            InvalidRequest: something in it cannot be spoken, and is left out.
        """
        check_string(text, "text", self.job.card, len(text))
        await self._take(partial(self._feed.feed, text), len(text) > _QUICK_CHARS)

    async def flush(self) -> None:
        """Give out what has come, although the text goes on; raises what `append` raises."""
        await self._take(self._feed.flush, self._feed.num_waiting > _QUICK_CHARS)

    async def finish(self) -> None:
        """The text is whole; raises what `append` raises."""
        try:
            await self._take(self._feed.finish, self._feed.num_waiting > _QUICK_CHARS)
        finally:
            self.drop_rest()

    def drop_rest(self) -> None:
        """Nothing more comes."""
        self._is_whole = True
        self._changed.set()

    async def next(self) -> Arrived | None:
        """The next unit as soon as it is there; None at the end."""
        while not self._arrived and not self._is_whole:
            self._changed.clear()
            await self._changed.wait()
        return self.next_now()

    def next_now(self) -> Arrived | None:
        """The next unit if it is there."""
        return self._arrived.popleft() if self._arrived else None

    async def _take(self, cut: Callable[[], list[Piece]], is_long: bool) -> None:
        def read() -> tuple[list[Arrived], InvalidRequest | None]:
            found: list[Arrived] = []
            refused: InvalidRequest | None = None
            for piece in cut():
                try:
                    found += self._units(piece)
                except InvalidRequest as error:
                    refused = refused or error
            return found, refused

        found, refused = await asyncio.to_thread(read) if is_long else read()
        if found:
            if not self._num_arrived:
                self.start_s = self._clock()
            self._num_arrived += len(found)
            self._arrived += found
            self._changed.set()
        if refused is not None:
            raise refused

    def _units(self, piece: Piece) -> list[Arrived]:
        request, card = self.job.request, self.job.card
        units = found_units(
            piece.text,
            "text",
            request.language,
            card,
            self._options,
            self._room,
            is_whole=False,
        )
        last = len(units) - 1
        return [
            Arrived(unit, piece.pause_s if number == last else 0.0)
            for number, unit in enumerate(units)
        ]
