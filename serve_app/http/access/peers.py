"""How many ingresses there are, known without waiting for the answer."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from serve_app.http.health import Status

_MAX_AGE_S: Final = 5.0
_DEPLOYMENT: Final = "Ingress"

logger = logging.getLogger(__name__)


class Ingresses:
    """The last number known; asked for again behind the back of whoever wants to know it."""

    def __init__(
        self,
        status: Callable[[], Awaitable[Status]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._clock = clock
        self._known = 1
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def count(self) -> int:
        """At least one: this one."""
        now_s = self._clock()
        is_asking = self._asking is not None and not self._asking.done()
        if now_s - self._asked_s > _MAX_AGE_S and not is_asking:
            self._asked_s = now_s
            self._asking = asyncio.create_task(self._ask())
        return self._known

    async def _ask(self) -> None:
        try:
            replicas = (await self._status()).replicas
        except Exception as error:  # the number that was known stays
            logger.warning("cannot count the ingresses", exc_info=error)
        else:
            self._known = max(1, replicas.get(_DEPLOYMENT, {}).get("ready", 1))
