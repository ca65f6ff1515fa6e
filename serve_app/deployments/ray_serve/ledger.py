"""The ledger of the keys' limits as a Ray actor, which the first ingress that needs it starts."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray.exceptions import RayActorError

from serve_app.http.access.ledger import Allowed, Ledger, Verdict

_NAMESPACE: Final = "serve"


class RayLedger:
    """Implements `http.access.limits.SharedLedger`.

    The actor ends with the ingress that started it, and the next to ask starts another. That one
    has a full measure for each key, and learns of what runs within seconds.

    Args:
        application: whose ingresses share it.
    """

    def __init__(self, application: str) -> None:
        self._name = f"tts-key-limits:{application}"
        self._actor: Any = None
        self._starting: asyncio.Task[Any] | None = None

    async def ask(self, ingress: str, key: str, allowed: Allowed, running: int) -> Verdict:
        if self._actor is None:
            # For all who ask meanwhile; who asked first may not have the time for it.
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(asyncio.to_thread(self._start))
            await asyncio.shield(self._starting)
        actor: Any = self._actor
        try:
            return await actor.ask.remote(ingress, key, allowed, running)
        except RayActorError:
            if self._actor is actor:
                self._actor = None
            raise

    def tell(self, ingress: str, running: Mapping[str, int]) -> None:
        if self._actor is not None:
            self._actor.tell.remote(ingress, running)

    def _start(self) -> None:
        made: Any = ray.remote(num_cpus=0)(Ledger)
        named = made.options(name=self._name, namespace=_NAMESPACE, get_if_exists=True)
        self._actor = named.remote()
