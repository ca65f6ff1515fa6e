"""How often a key may ask for speech, and for how much at once.

Each ingress holds its part of a key's limits: Serve spreads requests over the ingresses, which know
of each other only how many they are. A limit of 60 a minute is 30 a minute at each of two. What a
client sees is the whole: its headers state the limit of the key, and what is left by this ingress's
reckoning.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from serve_app.config import AccessConfig
from serve_app.keys.key_file import Key

_MINUTE_S: Final = 60.0
# When somebody else's speech may be over, for who has too many at once.
_AT_ONCE_RETRY_S: Final = 1.0
# Keys that have gone from the file are forgotten after so many others.
_MAX_SEEN: Final = 10_000


@dataclass(slots=True)
class _Use:
    """What one key has used at this ingress; `tokens` are requests that it may make at once."""

    tokens: float
    at_s: float
    running: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A limit is reached: why, and when to come again."""

    message: str
    retry_after_s: float


@dataclass(slots=True)
class KeyLimits:
    """Counts what the keys use.

    Args:
        ingresses: how many there are now.
    """

    config: AccessConfig
    ingresses: Callable[[], int] = lambda: 1
    clock: Callable[[], float] = time.monotonic
    _used: dict[str, _Use] = field(default_factory=dict)

    def enter(self, key: Key) -> Refusal | None:
        """Count a request that begins, unless a limit is in its way; then nothing is counted."""
        per_minute, at_once = self._per_minute(key), self._at_once(key)
        use = self._filled(key, per_minute)
        share = max(1, self.ingresses())
        if at_once is not None and use.running >= math.ceil(at_once / share):
            return Refusal(
                f"The key '{key.name}' may have {at_once} requests at once.", _AT_ONCE_RETRY_S
            )
        if per_minute is not None:
            # A part of less than one request would let nothing through.
            if use.tokens < 1:
                missing_s = (1 - use.tokens) / (per_minute / share) * _MINUTE_S
                return Refusal(
                    f"The key '{key.name}' may make {per_minute:g} requests per minute.", missing_s
                )
            use.tokens -= 1
        use.running += 1
        return None

    def leave(self, key: Key) -> None:
        """A request that had entered is over."""
        self._used[key.name].running -= 1

    def headers(self, key: Key) -> Mapping[str, str]:
        """What OpenAI's clients read of the rate; none where there is no limit."""
        per_minute = self._per_minute(key)
        if per_minute is None:
            return {}
        use, share = self._filled(key, per_minute), max(1, self.ingresses())
        missing = _capacity(per_minute, share) - use.tokens
        return {
            "x-ratelimit-limit-requests": f"{per_minute:g}",
            "x-ratelimit-remaining-requests": str(min(int(use.tokens * share), int(per_minute))),
            "x-ratelimit-reset-requests": duration(missing / (per_minute / share) * _MINUTE_S),
        }

    def _filled(self, key: Key, per_minute: float | None) -> _Use:
        now_s = self.clock()
        use = self._used.get(key.name)
        if use is None:
            self._forget()
            use = self._used[key.name] = _Use(math.inf, now_s)
        if per_minute is not None:
            share = max(1, self.ingresses())
            gained = (now_s - use.at_s) * per_minute / share / _MINUTE_S
            use.tokens = min(use.tokens + gained, _capacity(per_minute, share))
        use.at_s = now_s
        return use

    def _forget(self) -> None:
        if len(self._used) >= _MAX_SEEN:
            self._used = {name: use for name, use in self._used.items() if use.running}

    def _per_minute(self, key: Key) -> float | None:
        return key.requests_per_minute or self.config.requests_per_minute

    def _at_once(self, key: Key) -> int | None:
        return key.concurrent or self.config.concurrent


def _capacity(per_minute: float, share: int) -> float:
    return max(1.0, per_minute / share)


def duration(seconds: float) -> str:
    """As OpenAI writes one: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    if seconds < _MINUTE_S:
        return f"{round(seconds, 2):g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"
