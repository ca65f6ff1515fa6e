"""How many replicas of each deployment run, as Serve's controller says."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from ray import serve

_MAX_AGE_S: Final = 2.0

# "ready" and "total" of each deployment.
Counts: TypeAlias = Mapping[str, Mapping[str, int]]

logger = logging.getLogger(__name__)


class ReplicaCounts:
    """Asks at most once in a while; what was known last if the controller is away.

    Args:
        ask: blocks, for as long as the controller is away.
        max_age_s: how old an answer may be.
        wait_s: how long anybody waits for a new one.
    """

    def __init__(
        self,
        ask: Callable[[], Counts],
        max_age_s: float = _MAX_AGE_S,
        wait_s: float = _MAX_AGE_S,
    ) -> None:
        self._ask = ask
        self._max_age_s = max_age_s
        self._wait_s = wait_s
        self._known: Counts = {}
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[Counts] | None = None

    async def now(self) -> Counts:
        now_s = time.monotonic()
        if now_s - self._asked_s > self._max_age_s:
            self._asked_s = now_s
            if self._asking is None or self._asking.done():
                # The event loop carries the audio of other requests, so that a thread waits: one,
                # not one per try.
                self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
            try:
                asking = asyncio.shield(self._asking)
                self._known = await asyncio.wait_for(asking, self._wait_s)
            except Exception as error:
                logger.warning("cannot ask Serve for its replicas", exc_info=error)
        return self._known


def ask_serve(application: str) -> Counts:
    deployments = serve.status().applications[application].deployments
    return {
        name: {
            "ready": sum(n for state, n in deployment.replica_states.items() if state == "RUNNING"),
            # One that is to go is not missed.
            "total": sum(
                n for state, n in deployment.replica_states.items() if state != "STOPPING"
            ),
        }
        for name, deployment in deployments.items()
    }
