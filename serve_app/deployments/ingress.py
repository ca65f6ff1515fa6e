"""The Serve deployment that speaks HTTP: `build_api` around a handle, readiness, replica counts."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import IngressConfig
from serve_app.deployments.calls import through
from serve_app.deployments.recorded import of_hop, ray_recorder
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import State, Status
from serve_app.http.warm_up import WarmUp
from serve_app.resumption import Policy, resumed
from serve_app.types import ModelCard

_STATUS_MAX_AGE_S: Final = 2.0

logger = logging.getLogger(__name__)


@serve.deployment
@serve.ingress()
class Ingress:
    """The Serve deployment: each replica builds the application for itself.

    Args:
        speech: the deployment whose `speak(request, done)` yields `PcmChunk`s.
        cards: what is served, the default first.
        info: what `Status.info` shows.
    """

    def __init__(
        self,
        speech: DeploymentHandle,
        cards: Sequence[ModelCard],
        config: IngressConfig,
        info: Mapping[str, Any],
    ) -> None:
        self._cards = cards
        self._config = config
        self._info = info
        policy = Policy(
            config.first_audio_timeout_s, config.chunk_timeout_s, config.resume_timeout_s
        )
        call = through(speech, "speak")
        self._recorder = ray_recorder()
        self._speak = resumed(call, policy, of_hop(self._recorder, "ingress"))
        # Not observed: it asks before there is a stage to lose.
        self._warm_up = WarmUp(resumed(call, policy), cards)
        self._warming: asyncio.Task[None] | None = None
        self._replicas: Mapping[str, Mapping[str, int]] = {}
        self._replicas_at_s = float("-inf")
        self._counting: asyncio.Task[dict[str, dict[str, int]]] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve on the event loop that the application runs on."""
        self._warming = asyncio.create_task(self._warm_up.run())
        catalog = Catalog(self._cards)
        return build_api(self._speak, catalog, self._config, self.status, self._recorder)

    async def status(self) -> Status:
        replicas = await self._count_replicas()
        dead = [name for name, n in replicas.items() if n["total"] and not n["ready"]]
        state: State
        if not self._warm_up.passed:
            state, reason = "initializing", self._warm_up.reason
        elif dead:
            state, reason = "unhealthy", f"no running replica of {', '.join(dead)}"
        elif any(n["ready"] < n["total"] for n in replicas.values()):
            state, reason = "degraded", None
        else:
            state, reason = "healthy", None
        return Status(
            state=state,
            ready=state in ("healthy", "degraded"),
            reason=reason,
            replicas=replicas,
            info=self._info,
        )

    async def _count_replicas(self) -> Mapping[str, Mapping[str, int]]:
        """Ask Serve's controller, at most every two seconds; what was known last if it is away."""
        now_s = time.monotonic()
        if now_s - self._replicas_at_s > _STATUS_MAX_AGE_S:
            self._replicas_at_s = now_s
            if self._counting is None or self._counting.done():
                # The call blocks, and this loop carries the audio of other requests. While the
                # controller is away it does not return: one thread waits for it, not one per try.
                app_name = serve.get_replica_context().app_name
                self._counting = asyncio.create_task(asyncio.to_thread(_replica_counts, app_name))
            try:
                counting = asyncio.shield(self._counting)
                self._replicas = await asyncio.wait_for(counting, _STATUS_MAX_AGE_S)
            except Exception as error:
                logger.warning("cannot ask Serve for its replicas", exc_info=error)
        return self._replicas


def _replica_counts(app_name: str) -> dict[str, dict[str, int]]:
    application = serve.status().applications[app_name]
    return {
        name: {
            "ready": sum(n for state, n in deployment.replica_states.items() if state == "RUNNING"),
            "total": sum(deployment.replica_states.values()),
        }
        for name, deployment in application.deployments.items()
    }
