"""What Serve's controller tells of its applications: which have a model, and how they do."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final, TypeAlias

from ray.serve.context import _get_global_client

from serve_app.config import BUILDER, MODEL_BUILDER
from serve_app.deployments.ray_serve.nodes import Look, look_with, waiting
from serve_app.http.names import known_as
from serve_app.http.served.application import Application, ApplicationState

_MAX_AGE_S: Final = 2.0
# The deployments that an ingress calls, by placement.
_ENTRIES: Final = {"fused": "Fused", "split": "SpeechDecoder"}
_STATES: Final[Mapping[str, ApplicationState]] = {
    "NOT_STARTED": "starting",
    "DEPLOYING": "starting",
    "RUNNING": "running",
    "UNHEALTHY": "running",
    "DEPLOY_FAILED": "failed",
    "DELETING": "stopping",
}
# Of an application's configuration, what Serve replaces all replicas for.
_RESTARTS: Final = ("import_path", "args", "runtime_env")

# States of a replica that makes speech. One whose node is drained does so until its replacement
# runs; one that a new controller has yet to ask, or that gets new settings, has not stopped.
_MIGRATING: Final = "PENDING_MIGRATION"
_RUNNING: Final = ("RUNNING", _MIGRATING, "RECOVERING", "UPDATING")
_STOPPING: Final = "STOPPING"
# Serve's own, where none is told.
_GRACE_S: Final = 20.0

# What Serve says of a deployment whose replica has ended in its constructor, before it gives up.
_TRIED_AGAIN: Final = "A replica failed to start"
# What a path has before its last folder.
_FOLDERS: Final = re.compile(r"(?<![\w.])/(?:[^\s/:'\",]+/)+(?=[^\s/:'\",]+/[^\s/:'\",]+)")
_LONGEST: Final = 500

# All applications, by name.
Applications: TypeAlias = Mapping[str, Application]

logger = logging.getLogger(__name__)


class Following:
    """Asks at most once in a while; what was known last if the controller is away.

    Args:
        ask: blocks, for as long as the controller is away.
        max_age_s: how old an answer may be.
        wait_s: how long anybody waits for a new one.
    """

    def __init__(
        self,
        ask: Callable[[], Applications],
        max_age_s: float = _MAX_AGE_S,
        wait_s: float = _MAX_AGE_S,
    ) -> None:
        self._ask = ask
        self._max_age_s = max_age_s
        self._wait_s = wait_s
        self._known: Applications = {}
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._is_renewed = False

    async def now(self) -> Applications:
        now_s = time.monotonic()
        if self._is_renewed or now_s - self._asked_s > self._max_age_s:
            self._asked_s = now_s
            if self._asking is None or self._asking.done():
                # The event loop carries the audio of other requests, so that a thread waits: one,
                # not one per try.
                self._asking = asyncio.create_task(self._look())
            asking = self._asking
            try:
                await asyncio.wait_for(asyncio.shield(asking), self._wait_s)
            except Exception as error:
                logger.warning("cannot ask Serve for its applications", exc_info=error)
            if asking is self._asking:
                self._is_renewed = False
        return self._known

    async def _look(self) -> None:
        """Know the answer whenever it comes: a controller may take longer than anybody waits."""
        answer = await asyncio.to_thread(self._ask)
        if self._asking is asyncio.current_task():
            self._known = answer

    def renew(self) -> None:
        """Something has changed: who comes next gets no answer from before that, not even one that
        is still under way.
        """
        self._asking, self._is_renewed = None, True


def ask_serve() -> Applications:
    client = _get_global_client()
    details: Mapping[str, Any] = client.get_serve_details() if client is not None else {}
    applications = details.get("applications", {})
    look = _looked(details) if any(map(_lacks, applications.values())) else None
    return {
        name: application_of(name, application, look) for name, application in applications.items()
    }


def _lacks(application: Mapping[str, Any]) -> bool:
    """Whether replicas without which it is not whole are not there."""
    deployments = (application.get("deployments") or {}).values()
    return any(map(_is_short, deployments))


def _is_short(deployment: Mapping[str, Any]) -> bool:
    counts = _counts(deployment)
    return counts["ready"] < counts["total"]


def _looked(details: Mapping[str, Any]) -> Look | None:
    try:
        return look_with(details)
    except Exception as error:  # of any kind: GCS is away; what is known without it is told
        logger.debug("the cluster does not say what it has: %s", error)
        return None


def application_of(name: str, details: Mapping[str, Any], look: Look | None = None) -> Application:
    """One application of Serve's instance details; `look` says what replicas wait for."""
    config = details.get("deployed_app_config") or {}
    args: Mapping[str, Any] = config.get("args") or {}
    deployments: Mapping[str, Any] = details.get("deployments") or {}
    entry = next((entry for entry in _ENTRIES.values() if entry in deployments), "")
    if not entry and config.get("import_path") in (BUILDER, MODEL_BUILDER):
        # Serve has not built it yet.
        entry = _ENTRIES.get(str(args.get("placement", "split")), "")
    model = str(args.get("model") or "")
    stated = str(args.get("served_model_name") or "")
    served = stated or model or name
    restarts = [config.get(key) for key in _RESTARTS]
    version = hashlib.sha256(json.dumps(restarts, sort_keys=True, default=str).encode())
    return Application(
        name=name,
        entry=entry,
        state=_STATES.get(str(details.get("status")), "starting"),
        version=version.hexdigest()[:12],
        # Of a folder only its own name is anybody's business.
        label=PurePath(served).name if _is_folder(served) else served,
        known_as=known_as(served, model),
        is_named=bool(stated or (model and not _is_folder(model))),
        reason=_reason(name, details),
        replicas={deployment: _counts(found) for deployment, found in deployments.items()},
        waking=frozenset(name for name, found in deployments.items() if _is_waking(found)),
        leaving=dict(entry for found in deployments.values() for entry in _leaving(found)),
        lacks="; ".join(
            f"{deployment} has {why}"
            for deployment, why in (waiting(look, name) if look is not None else {}).items()
            if _is_short(deployments[deployment])
        )
        or None,
    )


def _reason(application: str, details: Mapping[str, Any]) -> str | None:
    """Why an application is as it is, in one line: what its deployments fail by says more than what
    Serve says of the whole. Anybody may read it, and of a file only name and folder are theirs to
    know.
    """
    state = _STATES.get(str(details.get("status")), "starting")
    messages = {
        name: str(found.get("message") or "")
        for name, found in (details.get("deployments") or {}).items()
        if state == "starting" or found.get("status") == "DEPLOY_FAILED"
    }
    if state == "starting":
        tried = (name for name, message in messages.items() if message.startswith(_TRIED_AGAIN))
        name = next(tried, None)
        if name is None:
            return None
        # As the launcher says it, which says nothing twice.
        cause = _last_line(messages[name])
        why = f"{name} of {application!r} failed to start and is tried again: {cause}"
    else:
        whole = str(details.get("message") or "")
        why = _last_line(next((m for m in messages.values() if m), whole))
    return _FOLDERS.sub("", why)[:_LONGEST] or None


def _last_line(message: str) -> str:
    """What a message has at its end, where it quotes a traceback."""
    *_, last = ["", *message.strip().splitlines()]
    return last


def _is_folder(model: str) -> bool:
    return model.startswith(("/", ".", "~"))


def _is_waking(deployment: Mapping[str, Any]) -> bool:
    """Whether it has no replica yet since it was allowed to have none, and is asked for one."""
    config = deployment.get("deployment_config") or {}
    autoscaling = config.get("autoscaling_config") or {}
    may_sleep = autoscaling.get("min_replicas") == 0 and deployment.get("status") == "UPSCALING"
    return may_sleep and not _counts(deployment)["ready"]


def _leaving(deployment: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    config = deployment.get("deployment_config") or {}
    limit_s = float(config.get("graceful_shutdown_timeout_s", _GRACE_S))
    for replica in deployment.get("replicas", ()):
        if replica["state"] == _STOPPING:
            yield replica["replica_id"], limit_s


def _counts(deployment: Mapping[str, Any]) -> Mapping[str, int]:
    """One that is to go is not missed, nor is one that takes the place of another which still
    runs. Nor is one that comes because there is more to do: the cluster may have no room for it for
    a long time, and those that run are well.
    """
    states = [replica["state"] for replica in deployment.get("replicas", ())]
    ready = sum(state in _RUNNING for state in states)
    if ready and deployment.get("status") == "UPSCALING":
        return {"ready": ready, "total": ready}
    total = sum(state != _STOPPING for state in states)
    return {"ready": ready, "total": max(ready, total - states.count(_MIGRATING))}
