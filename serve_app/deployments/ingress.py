"""The Serve deployment that speaks HTTP: `build_api` around a handle, readiness, replica counts."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import IngressConfig
from serve_app.deployments.agents import Agents
from serve_app.deployments.calls import reach, through
from serve_app.deployments.ray_serve import port
from serve_app.deployments.ray_serve.replica_counts import ReplicaCounts, ask_serve
from serve_app.deployments.recorded import of_hop, ray_recorder
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import State, Status
from serve_app.http.observe.record import current
from serve_app.http.warm_up import WarmUp
from serve_app.load.admission import Admission
from serve_app.load.gate import Gate, Limits
from serve_app.load.routing import stage
from serve_app.resumption import Observe, Outcome, Policy, resumed


@serve.deployment
@serve.ingress()
class Ingress:
    """The Serve deployment: each replica builds the application for itself.

    Args:
        speech: the deployment whose `speak(request, done)` yields `PcmChunk`s, and whose `card()`
            says what is served.
        info: what `Status.info` shows.
        limits: of the stages.
        talker: the deployment behind `speech` where it is one of its own; never called from here.
    """

    def __init__(
        self,
        speech: DeploymentHandle,
        config: IngressConfig,
        info: Mapping[str, Any],
        limits: Limits,
        talker: DeploymentHandle | None = None,
    ) -> None:
        self._catalog = Catalog()
        port.narrow()
        self._config = config
        self._info = info
        policy = Policy(
            config.first_audio_timeout_s, config.chunk_timeout_s, config.resume_timeout_s
        )
        self._recorder = ray_recorder()
        self._talker = talker
        self._gate = Gate(
            [stage(name, places) for name, places in limits.places],
            Admission(limits.max_queued, limits.max_wait_s),
            self._recorder,
        )
        call = self._gate.into(through(speech, "speak"))
        self._speak = resumed(call, policy, _noted(of_hop(self._recorder, "ingress")))
        # Not observed: it asks before there is a stage to lose.
        self._warm_up = WarmUp(speech.card.remote, resumed(call, policy), self._catalog)
        self._warming: asyncio.Task[None] | None = None
        self._replicas: ReplicaCounts | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve on the event loop that the application runs on."""
        if self._talker is not None:
            reach(self._talker)
        self._replicas = ReplicaCounts(partial(ask_serve, serve.get_replica_context().app_name))
        self._warming = asyncio.create_task(self._warm_up.run())
        return build_api(
            self._speak,
            self._catalog,
            self._config,
            self.status,
            self._recorder,
            Agents().texts,
            look=self._gate.look,
        )

    async def status(self) -> Status:
        replicas = await self._replicas.now() if self._replicas is not None else {}
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


def _noted(observe: Observe) -> Observe:
    """`observe`, and the record of the request whose stream it is knows it too."""

    def noted(outcome: Outcome, silent_s: float) -> None:
        observe(outcome, silent_s)
        if outcome == "resumed":
            current().resumed += 1

    return noted
