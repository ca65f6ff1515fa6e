"""The Serve deployment that speaks HTTP: `build_api` around the models that it finds."""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import Environment, IngressConfig, LiveSettings
from serve_app.deployments.agents import Agents
from serve_app.deployments.calls import reach, through
from serve_app.deployments.ray_serve import replica, sockets, starts
from serve_app.deployments.ray_serve.applications import Following, ask_serve
from serve_app.deployments.ray_serve.ledger import RayLedger
from serve_app.deployments.ray_serve.refusals import CountedRefusals
from serve_app.deployments.recorded import of_hop, ray_recorder
from serve_app.deployments.voice_encoder import VOICE_ENCODER, RemoteVoiceEncoder
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.draining.drain import Drain
from serve_app.http.health import Status, overall
from serve_app.http.observe.record import current
from serve_app.http.served.application import Application
from serve_app.http.served.models import Models
from serve_app.load.gate import StagePlaces
from serve_app.load.routing import stage
from serve_app.load.served import Served
from serve_app.resumption import Observe, Outcome, Policy, Resumable
from serve_app.types import PcmChunk

_FOLLOW_EVERY_S: Final = 1.0
# Before Serve kills an ingress that it waited for: to have noticed, and to say so.
_LAST_WORDS_S: Final = 6.0
SWITCH_INTERVAL_S: Final = 0.0005

logger = logging.getLogger(__name__)


@serve.deployment
@serve.ingress()
class Ingress:
    """The Serve deployment: each replica builds the application for itself.

    It serves the models of all applications of the cluster, its own among them, and asks each what
    that is. Applications may come and go.

    Args:
        info: what `Status.info` shows beside what the models tell.
        stages: of its own application, so that Serve starts them with it; found like any others.
    """

    def __init__(
        self, config: IngressConfig, info: Mapping[str, Any], *stages: DeploymentHandle
    ) -> None:
        del stages
        replica.begin()
        sockets.outlast()
        # Threads that encode hand Python's lock back and forth with the event loop; the
        # interpreter's default lets one that works in Python make the others wait for 5 ms.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        context = serve.get_replica_context()
        self._application, self._replica = context.app_name, context.replica_id.unique_id
        self._catalog = Catalog()
        self._drain = Drain()
        self._config = config
        self._info = info
        self._recorder = CountedRefusals(
            ray_recorder(), self._application, lambda: self._models.applications
        )
        self._applications = Following(ask_serve)
        self._models = Models(
            self._catalog,
            cache(Stages),
            Policy(config.first_audio_timeout_s, config.chunk_timeout_s, config.resume_timeout_s),
            self._recorder,
            _noted(of_hop(self._recorder, "ingress")),
            self._application,
            self._applications.renew,
        )
        self._following: asyncio.Task[None] | None = None
        self._is_leaving = False

    @starts.saying_why
    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve on the event loop that the application runs on."""
        self._following = asyncio.create_task(self._follow())
        loops = Environment.read().loops
        if loops is not None:
            (loops / str(os.getpid())).write_text(str(threading.get_native_id()))
        return build_api(
            self._models.speak,
            self._catalog,
            self._config,
            self.status,
            self._recorder,
            Agents().texts,
            look=self._models.look,
            encoder_of=self._models.encoder_of,
            ledger=RayLedger(self._application),
            drain=self._drain,
        )

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take `user_config`; where it is wrong, the settings stay as they are.

        What is raised here would make Serve take the replica for broken, with its streams.
        """
        try:
            settings = LiveSettings.model_validate(user_config)
        except ValidationError as error:
            logger.error("user_config is refused, nothing is changed: %s", error)
            return
        logging.getLogger("serve_app").setLevel(settings.log_level)
        self._catalog.prefer(settings.default_model)
        self._models.limit(settings.models, settings.admission)
        logger.info("settings are now: %s", settings.model_dump_json())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return self._recorder.report()

    async def status(self) -> Status:
        applications = await self._applications.now()
        self._models.follow(applications.values())
        own = applications.get(self._application)
        return overall(
            self._application,
            own.replicas if own is not None else {},
            self._models.statuses(),
            self._info,
        )

    async def drain(self) -> int:
        """Take no new speech from now on; how many requests are still answered."""
        self._drain.begin()
        return self._drain.num_open

    async def cut(self) -> int:
        """End what is left; how many requests are still answered."""
        self._drain.cut()
        return self._drain.num_open

    async def _follow(self) -> None:
        while True:
            try:
                applications = await self._applications.now()
                self._models.follow(applications.values())
                self._end_with(applications.get(self._application))
            except Exception:
                # Whatever it is: what is served goes on, and the next look may find it mended.
                logger.exception("cannot follow the applications")
            await asyncio.sleep(_FOLLOW_EVERY_S)

    def _end_with(self, own: Application | None) -> None:
        """Serve lets nobody know whom it takes out of service: it waits for what they have."""
        limit_s = own.leaving.get(self._replica) if own is not None else None
        if limit_s is None or self._is_leaving:
            return
        self._is_leaving = True
        logger.info("taken out of service, with %d requests", self._drain.num_open)
        self._drain.leave()
        asyncio.get_running_loop().call_later(limit_s - _LAST_WORDS_S, self._drain.cut)


class Stages:
    """The way to the stages of an application; the same for its life, as its routers are."""

    def __init__(self, application: str, entry: str) -> None:
        self._application = application
        self._entry = DeploymentHandle(entry, application)
        self._behind: dict[str, DeploymentHandle] = {}
        # All handles made from it share what it knows.
        reach(self._entry)
        self.call: Resumable[PcmChunk] = through(self._entry, "speak")
        # Asked only where the card says that the checkpoint clones voices.
        self.voice_encoder = RemoteVoiceEncoder(DeploymentHandle(VOICE_ENCODER, application))

    async def ask(self) -> Served:
        return await self._entry.served.remote()

    def stage(self, deployment: str, places: int) -> StagePlaces:
        handle = self._entry
        if deployment != handle.deployment_name:
            # Never called from here: its replicas count.
            if deployment not in self._behind:
                self._behind[deployment] = DeploymentHandle(deployment, self._application)
                reach(self._behind[deployment])
            handle = self._behind[deployment]
        return stage(handle.deployment_id, places)


def _noted(observe: Observe) -> Observe:
    """`observe`, and the record of the request whose stream it is knows it too."""

    def noted(outcome: Outcome, silent_s: float) -> None:
        observe(outcome, silent_s)
        if outcome == "resumed":
            record = current()
            record.resumed += 1
            record.silent_s = max(record.silent_s, silent_s)

    return noted
