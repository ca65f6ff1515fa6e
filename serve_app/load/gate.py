"""The way from an ingress into the stages: lets in what can be served in time, refuses the rest.

A request is refused twice as cheaply as it could be: before its body is read, by what is known
then, and before a call is made, when it counts. Either way no stage hears of it.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from serve_app.errors import Overloaded
from serve_app.load.admission import Admission
from serve_app.load.places import Places
from serve_app.resumption import Resumable
from serve_app.types import SpeechRequest

_LOG_EVERY_S: Final = 5.0
# So long after a request of a higher priority others give way: more of its kind may come.
_HIGHER_S: Final = 60.0

# So long after a replica has refused one its word counts, and none is asked by counts alone.
_TOLD_S: Final = 0.1
# Replicas that are asked although no room is seen in them: streams of others have ended since.
_UNSEEN: Final = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StagePlaces:
    """One that every stream has a place in.

    known: asked for what is known of its replicas; None: nothing yet.
    places: streams of one replica.
    """

    known: Callable[[], Places[Any] | None]
    places: int


@dataclass(frozen=True, slots=True)
class StageLimits:
    """What an ingress has to know of the stages.

    places: streams of one replica of each stage, the one that is called first.
    max_queued, max_wait_s: as of `Admission`.
    """

    places: tuple[tuple[str, int], ...]
    max_queued: int
    max_wait_s: float


class Gate:
    """Counts the calls of one ingress and predicts the wait of the next one.

    Others' streams are known a moment late. Where a place is free too seldom for anybody to wait
    for it, a replica is asked as long as the own streams leave a place, but not right after one
    has refused: it knows.

    A request gives way where others of a higher priority have come here within the last minute:
    the last places and those that become free are theirs. Nobody is sent away who is inside.

    Args:
        stages: first the one that is called; what other ingresses have there counts as well. The
            one with the fewest places in all decides.
        admission: the rule.
        model: whose stages they are, for the log.
    """

    def __init__(
        self,
        stages: Sequence[StagePlaces],
        admission: Admission,
        clock: Callable[[], float] = time.monotonic,
        *,
        model: str,
    ) -> None:
        self._model = model
        self._entry = stages[0]
        self._stages = stages
        self._admission = admission
        self._clock = clock
        self._listened = 0
        self._background = 0
        self._refused = 0
        # When a replica has last refused what was let in.
        self._told_s = float("-inf")
        self._logged_s = float("-inf")
        # When each priority was last seen.
        self._seen_s: dict[int, float] = {}

    def lead_to(self, stages: Sequence[StagePlaces], model: str) -> None:
        """Other numbers of places, other stages, or those of another model, from now on; who is
        inside stays counted.
        """
        self._entry, self._stages, self._model = stages[0], stages, model

    def look(self, priority: int = 0, *, counts: bool = True) -> None:
        """Before anything of a listener's request is read; background work would give way to it.

        Where it may be for another model, and so not `counts`, nothing is remembered of it: that
        one's crowd would shorten the wait here, and its priority close places.

        Raises:
            Overloaded: it could not be let in now.
        """
        self._check(self._listened, priority, goes_on=False, background=False, counts=counts)

    def into(self, call: Resumable[Any]) -> Resumable[Any]:
        """The calls of `call`, one of which is refused where it would wait for too long.

        A replica may refuse what was let in, since others have come there meanwhile: then another
        one is asked as long as one has room.
        """

        async def passed(
            request: SpeechRequest, done: np.ndarray | None
        ) -> AsyncGenerator[Any, None]:
            goes_on, background = request.is_heard(done), request.background
            has_room = self._check(
                self._listened + self._background,
                request.priority,
                goes_on=goes_on,
                background=background,
            )
            if (self._admission.is_crowded or not has_room) and not goes_on:
                # Others' streams may have ended, and other ingresses may give away the same place
                # at this moment; the replica knows.
                longest_s = self._admission.longest_wait_s
                request = replace(request, longest_wait_s=longest_s)
            self._count(background, 1)
            first_s: float | None = None
            try:
                async with aclosing(elsewhere(call, self._entry)(request, done)) as items:
                    async for item in items:
                        first_s = first_s or self._clock()
                        yield item
            except Overloaded:
                self._told_s = self._clock()
                raise
            finally:
                self._count(background, -1)
                if first_s is not None:
                    self._admission.note(self._clock() - first_s)

        return passed

    def _count(self, background: bool, change: int) -> None:
        if background:
            self._background += change
        else:
            self._listened += change

    def _check(
        self, own: int, priority: int, *, goes_on: bool, background: bool, counts: bool = True
    ) -> bool:
        """Whether there is room, as far as is known here."""
        if counts and not background:
            self._seen_s[priority] = self._clock()
        gives_way = not background and self._gives_way(priority)
        known = [(stage.known(), stage.places) for stage in self._stages]
        totals = [len(replicas) * places for replicas, places in known if replicas is not None]
        entry = known[0][0]
        if entry is None or not totals:
            return True
        inside = own + entry.others
        may_ask = own < min(totals) and self._clock() - self._told_s >= _TOLD_S
        try:
            return self._admission.check(
                inside,
                min(totals),
                goes_on=goes_on,
                background=background,
                gives_way=gives_way,
                may_ask=may_ask,
                counts=counts,
            )
        except Overloaded as error:
            if counts and not background:
                self._note_refused(error)
            raise

    def _gives_way(self, priority: int) -> bool:
        """Whether ones of a higher priority were here of late."""
        since_s = self._clock() - _HIGHER_S
        return any(seen_s > since_s for other, seen_s in self._seen_s.items() if other > priority)

    def _note_refused(self, error: Overloaded) -> None:
        """One line for all that were refused of late."""
        self._refused += 1
        now_s = self._clock()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            logger.warning("refused %d requests for %s: %s", self._refused, self._model, error)
            self._refused, self._logged_s = 0, now_s


def elsewhere(call: Resumable[Any], stage: StagePlaces) -> Resumable[Any]:
    """The calls of `call`, made again where a replica refuses and another has a place."""

    async def again(request: SpeechRequest, done: np.ndarray | None) -> AsyncGenerator[Any, None]:
        attempts = 0
        while True:
            begun = False
            try:
                async with aclosing(call(request, done)) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except Overloaded:
                attempts += 1
                replicas = stage.known()
                if begun or replicas is None or attempts >= len(replicas):
                    raise
                if attempts >= _UNSEEN and not replicas.has_room(stage.places):
                    raise

    return again
