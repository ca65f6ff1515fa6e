"""A stream that goes on elsewhere when what makes it is lost; the same at every hop.

Items carry the codes they were made from, so the next attempt is told what the listener has and
yields the rest. The ingress resumes its speech decoder, the speech decoder its talker.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from serve_app.errors import (
    Overloaded,
    RepeatedFailure,
    SpeechError,
    StageFailed,
    StageLost,
    StageUnavailable,
)
from serve_app.pipeline import Interrupted, Waiting
from serve_app.types import FinishReason, PcmChunk, SpeechRequest


class Item(Protocol):
    """`CodecFrames` and `PcmChunk`: codes are int64 [T, Q]."""

    @property
    def codes(self) -> np.ndarray: ...

    @property
    def finish_reason(self) -> FinishReason | None: ...


T = TypeVar("T", bound=Item)
T_co = TypeVar("T_co", bound=Item, covariant=True)

# How the HTTP server gets its audio: one call per request, wherever the stages run.
Speak = Callable[[SpeechRequest], AsyncGenerator[PcmChunk, None]]
# The second argument, int64 [T, Q] or None, are the codes of what the listener has.
Resumable = Callable[[SpeechRequest, np.ndarray | None], AsyncGenerator[T, None]]
# Told once of each loss, when the stream goes on or is given up, and how long it was silent: the
# seconds since its last item, or since the call.
Outcome = Literal["resumed", "lost"]
Observe = Callable[[Outcome, float], None]


class Resumed(Protocol[T_co]):
    def __call__(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[T_co, None]: ...


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """When an attempt is given up, and when the stream is.

    Attributes:
        first_s: longest wait for the first item of an attempt.
        gap_s: longest wait for each further one.
        deadline_s: longest time without an item over all attempts and pauses.
        max_attempts: attempts in a row that may bring no item; a wait for capacity is none.
        max_broken: replicas that one request may break.
        settled_frames: frames after which a broken replica is forgotten. A request that breaks
            replicas does so at one place, which the next attempt reaches at once.
        pause_s: before the second attempt; doubles with each one that brings nothing.
        max_pause_s: what it doubles up to.
    """

    first_s: float
    gap_s: float
    deadline_s: float
    max_attempts: int = 6
    max_broken: int = 2
    settled_frames: int = 64
    pause_s: float = 0.1
    max_pause_s: float = 3.0


def _ignore(outcome: Outcome, silent_s: float) -> None:
    del outcome, silent_s


def resumed(
    call: Resumable[T],
    policy: Policy,
    observe: Observe = _ignore,
    *,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Resumed[T]:
    """Calls of `call` that go on in a new attempt whenever one is lost, as `policy` allows.

    Lost means: unavailable, broken, or silent for too long. `Overloaded` passes through while
    nothing is heard, also of a piece before this one; later it is waited out, for a client that
    hears audio cannot be told to come back. Time that the consumer takes between two items does
    not count.

    Raises (the generator):
        RepeatedFailure: the request broke `max_broken` replicas; nobody should try it again.
        SpeechError: the error of the last attempt.
    """

    async def stream(
        request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[T, None]:
        losses, since_s, is_silent = _Losses(policy), clock(), False
        parts = [] if done is None or not len(done) else [done]
        while True:
            ended, limit_s, waiting = False, policy.first_s, Waiting()
            try:
                async with aclosing(
                    call(request, np.concatenate(parts) if parts else None)
                ) as items:
                    while True:
                        item = await waiting.wait(anext(items), limit_s)
                        ended, limit_s = item.finish_reason is not None, policy.gap_s
                        if len(item.codes):
                            parts.append(item.codes)
                        if is_silent:
                            silent_s, is_silent = clock() - since_s, False
                            observe("resumed", silent_s)
                            logger.info("%s: goes on after %.2f s", request.request_id, silent_s)
                        yield item
                        losses.forget(len(item.codes))
                        since_s = clock()
            except StopAsyncIteration:
                return
            except (StageUnavailable, StageFailed, Overloaded, Interrupted) as error:
                if ended:
                    return
                if isinstance(error, Interrupted):  # who makes the items may hang
                    error = StageUnavailable(f"nothing came within {limit_s:g} s")
                is_heard = len(parts) > 0 or request.ahead_s is not None
                is_refused = isinstance(error, Overloaded) and not is_heard
                try:
                    if is_refused:
                        raise
                    pause_s = losses.pause(error, clock() - since_s)
                except SpeechError:
                    if is_silent or not is_refused:
                        observe("lost", clock() - since_s)
                    raise
                is_silent = True
                logger.warning(
                    "%s: lost after %d frames, going on in %.1f s: %s",
                    request.request_id,
                    sum(map(len, parts)),
                    pause_s,
                    error,
                )
            finally:
                waiting.close()
            await sleep(pause_s)

    return stream


class _Losses:
    """What one stream has lost since its last item, and of late."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._attempts = 0
        self._pauses = 0
        self._broken = 0
        self._frames = 0

    def forget(self, num_frames: int) -> None:
        """An item has come."""
        self._attempts = self._pauses = 0
        self._frames += num_frames
        if self._frames >= self._policy.settled_frames:
            self._broken = 0

    def pause(self, error: SpeechError, silent_s: float) -> float:
        """Seconds until the next attempt, of a stream without an item for `silent_s` seconds.

        Raises:
            SpeechError: there is none.
        """
        if isinstance(error, RepeatedFailure):
            raise error
        policy = self._policy
        if isinstance(error, StageFailed | StageLost):
            self._broken += 1
            self._frames = 0
            if self._broken >= policy.max_broken:
                raise RepeatedFailure(f"{self._broken} replicas broke: {error}") from error
        if not isinstance(error, Overloaded):
            self._attempts += 1
            if self._attempts >= policy.max_attempts:
                raise error
        pause_s = min(policy.max_pause_s, policy.pause_s * 2**self._pauses)
        self._pauses += 1
        if silent_s + pause_s > policy.deadline_s:
            raise error
        return pause_s
