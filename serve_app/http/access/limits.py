"""How often a key may ask for speech, and for how much at once: over all ingresses together.

All of them ask one ledger. While that does not answer each goes by a part of the limits, as many
parts as there are ingresses, so that a key has at most what it may have, or an ingress' part less.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from serve_app.config import AccessConfig
from serve_app.http.access.ledger import MINUTE_S, SILENT_S, Allowed, Ledger, Verdict
from serve_app.keys.key_file import Key

# When somebody else's speech may be over, for who has too many at once.
_AT_ONCE_RETRY_S: Final = 1.0
# Of a request that waits for it; then the ledger is left alone for a while.
_PATIENCE_S: Final = 0.25
_PAUSE_S: Final = 2.0
_TELL_EVERY_S: Final = SILENT_S / 4

logger = logging.getLogger(__name__)


class SharedLedger(Protocol):
    """A `Ledger` somewhere else, which all ingresses reach; what it raises means that it cannot be
    reached.
    """

    async def ask(self, ingress: str, key: str, allowed: Allowed, running: int) -> Verdict: ...

    def tell(self, ingress: str, running: Mapping[str, int]) -> None:
        """Without an answer, in the order of the calls."""
        ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """A limit is reached: why, and when to come again."""

    message: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """Whether a request was let in, and what OpenAI's clients read of the rate; nothing where there
    is no limit.
    """

    refusal: Refusal | None
    headers: Mapping[str, str]


_FREE: Final = Entry(None, {})


class KeyLimits:
    """Counts what the keys use.

    Args:
        shared: the ledger of all ingresses; None: there is one ingress.
        ingresses: how many there are now.
    """

    def __init__(
        self,
        config: AccessConfig,
        shared: SharedLedger | None = None,
        ingresses: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._shared = shared
        self._ingresses = ingresses
        self._clock = clock
        self._name = uuid.uuid4().hex
        self._own = Ledger(clock)
        self._running: dict[str, int] = {}
        self._asks_again_s = float("-inf")
        self._telling: asyncio.Task[None] | None = None

    async def enter(self, key: Key) -> Entry:
        """Count a request that begins, unless a limit is in its way; then nothing is counted."""
        allowed = self._allowed(key)
        if allowed == Allowed():
            return _FREE
        self._running[key.name] = self._running.get(key.name, 0) + 1
        try:
            verdict, parts, is_shared = await self._ask(key, allowed)
        except BaseException:
            self._less(key)
            self._tell_of(key)  # who asks in vain may have been let in over there
            raise
        if verdict.refused:
            self._less(key)
            if not is_shared:
                self._tell_of(key)
        self._keep_telling()
        return Entry(_refusal(key, allowed, verdict), _headers(allowed, verdict, parts))

    def leave(self, key: Key) -> None:
        """A request that had entered is over."""
        # One that came before its key had limits was not counted.
        if key.name in self._running and self._allowed(key) != Allowed():
            self._less(key)
            self._tell_of(key)

    def _less(self, key: Key) -> None:
        self._running[key.name] -= 1
        if not self._running[key.name]:
            del self._running[key.name]

    async def _ask(self, key: Key, allowed: Allowed) -> tuple[Verdict, int, bool]:
        """The verdict, of how many parts it is one, and whether it is the shared ledger's."""
        asked = (self._name, key.name)
        count = self._running[key.name]
        if self._shared is None:
            return self._own.ask(*asked, allowed, count), 1, False
        if self._clock() >= self._asks_again_s:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    return await self._shared.ask(*asked, allowed, count), 1, True
            except Exception as error:
                logger.warning("limits of keys are divided for the moment: %r", error)
                self._asks_again_s = self._clock() + _PAUSE_S
        parts = max(1, self._ingresses())
        return self._own.ask(*asked, allowed.share(parts), count), parts, False

    def _tell_of(self, key: Key) -> None:
        self._tell({key.name: self._running.get(key.name, 0)})

    def _tell(self, running: Mapping[str, int]) -> None:
        if self._shared is None:
            return
        try:
            self._shared.tell(self._name, running)
        except Exception as error:
            logger.warning("the ledger of the keys is not told: %r", error)

    def _keep_telling(self) -> None:
        if self._shared is not None and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell_until_idle())

    async def _tell_until_idle(self) -> None:
        while self._running:
            await asyncio.sleep(_TELL_EVERY_S)
            self._tell(dict(self._running))

    def _allowed(self, key: Key) -> Allowed:
        return Allowed(
            key.requests_per_minute or self._config.requests_per_minute,
            key.concurrent or self._config.concurrent,
        )


def _refusal(key: Key, allowed: Allowed, verdict: Verdict) -> Refusal | None:
    if verdict.refused == "at_once":
        return Refusal(
            f"The key '{key.name}' may have {allowed.at_once} requests at once.", _AT_ONCE_RETRY_S
        )
    if verdict.refused == "rate":
        return Refusal(
            f"The key '{key.name}' may make {allowed.per_minute:g} requests per minute.",
            verdict.next_s,
        )
    return None


def _headers(allowed: Allowed, verdict: Verdict, parts: int) -> Mapping[str, str]:
    rate = allowed.per_minute
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit-requests": f"{rate:g}",
        "x-ratelimit-remaining-requests": str(min(int(verdict.left * parts), int(rate))),
        "x-ratelimit-reset-requests": duration(verdict.full_s),
    }


def duration(seconds: float) -> str:
    """As OpenAI writes one: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    if seconds < MINUTE_S:
        return f"{round(seconds, 2):g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"
