"""Serve's router for streams: the replica with the fewest, at once, or the word that all are full.

Serve's own router keeps what no replica takes in a queue, and has two tasks per replica look for
room with pauses of up to half a second: with 300 clients before 64 places, requests sat there for
half a minute while places were free. Here nothing is queued. Who finds all replicas full is told so
in the same turn of the event loop, and is refused by the ingress, where it can be.

It replaces `_choose_replica_for_request`, as `ray.serve.experimental.capacity_queue_router` does.
"""

import asyncio
import itertools
import logging
import time
from functools import partial
from typing import ClassVar, Final

from ray.exceptions import ActorDiedError, RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.metrics import Counter, Gauge, Histogram
from ray.serve.request_router import (
    LocalityMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serve_app import metrics
from serve_app.errors import Overloaded, StageUnavailable
from serve_app.load.gate import StagePlaces
from serve_app.load.places import LOOKS, Places
from serve_app.load.streams import CALLING, Streams

# How often replicas with streams are asked how many they have, unless a call has just told, and how
# long one may take to answer.
_ASK_EVERY_S: Final = 0.5
_ANSWER_S: Final = 1.0
# Times in a row that a replica may not answer before its streams go on elsewhere, where there is an
# elsewhere. Serve's health checks take longer to find out, and then kill it.
_UNHEARD: Final = 2
# How long streams stay at a replica that is to go, since most of them end meanwhile, and how many
# leave it at a time after that: each is prefilled elsewhere, beside streams that run.
_STAY_S: Final = 5.0
_AT_ONCE: Final = 4

logger = logging.getLogger(__name__)


class FewestStreams(LocalityMixin, RequestRouter):
    """Sends each call to the replica with the fewest streams, and waits for none but the first.
    Those that make their listeners wait count as several.

    A handle that prefers its own node has the replicas there asked first. Streams of a replica that
    is to go finish there, or go on elsewhere where there is room for them.

    Raises (in the caller's stream):
        Overloaded: every replica has as many calls as it takes.
        StageUnavailable: those that have room are about to go.
    """

    # By deployment, for whoever wants to know how much room there is; of several handles in a
    # process, the one that was used first.
    known: ClassVar[dict[DeploymentID, "FewestStreams"]] = {}

    def initialize_state(
        self,
        *,
        places: int | None = None,
        ask_every_s: float = _ASK_EVERY_S,
        answer_s: float = _ANSWER_S,
        stay_s: float = _STAY_S,
    ) -> None:
        """`places`: streams of one replica; None: as many as it takes calls."""
        self._streams_each = places
        self._stay_s = stay_s
        self._ask_every_s = ask_every_s
        self._answer_s = answer_s
        self.places: Places[ReplicaID] = Places(time.monotonic)
        self._streams: dict[ReplicaID, Streams] = {}
        # Since when replicas that still have streams are not live any more.
        self._leaving: dict[ReplicaID, float] = {}
        self._near: set[ReplicaID] = set()
        self._recorder = metrics.MetricsRecorder(Counter, Histogram, Gauge)
        self._asking: asyncio.Task[None] | None = None
        self._asked: dict[ReplicaID, asyncio.Task[None]] = {}
        self.known.setdefault(self._deployment_id, self)

    @classmethod
    def places_of(cls, deployment: DeploymentID) -> Places[ReplicaID] | None:
        """What this process knows of a deployment; None: nothing yet."""
        router = cls.known.get(deployment)
        return router.places if router is not None else None

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._set_live()
        if self._prefer_local_node_routing:
            self._near = {r.replica_id for r in replicas if r.node_id == self._self_node_id}
        if self._asking is None:
            self._asking = self._event_loop.create_task(self._ask())

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        if replica_id in self._replicas:
            self._recorder.count(metrics.REPLICAS_LOST, callee=self._deployment_id.name)
            logger.warning("%s is lost: found dead while it was in service", replica_id)
        super().on_replica_actor_died(replica_id)
        self._set_live()

    def _set_live(self) -> None:
        self.places.set_live(self._replicas)
        now_s = time.monotonic()
        for key, streams in list(self._streams.items()):
            if key in self._replicas:
                self._leaving.pop(key, None)
            elif streams.members:
                self._leaving.setdefault(key, now_s)
            else:
                del self._streams[key]
                self._leaving.pop(key, None)
        for key in self._replicas:
            if key not in self._streams:
                refused, heard = partial(self.places.refused, key), partial(self.places.heard, key)
                self._streams[key] = Streams(refused, heard)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        raise NotImplementedError("the choice is made for each request in one step")

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        # With the request, so that nothing is left of one that is given up.
        asked: list[ReplicaID] = vars(pending_request).setdefault("asked", [])
        if is_retry and asked:
            self.places.close(asked[-1])
        while True:
            while not self._replicas:
                self._replicas_updated_event.clear()
                await self._replicas_updated_event.wait()
            limit = min(replica.max_ongoing_requests for replica in self._replicas.values())
            chosen = self.places.take(limit, asked, self._near, self._streams_each)
            if chosen is None:
                if self.places.has_room(limit):
                    raise StageUnavailable("the replicas that have room are about to go")
                raise Overloaded(f"{len(self.places)} replicas have {limit} requests each")
            if chosen in self._replicas:
                asked.append(chosen)
                stream = CALLING.get()
                if stream is not None:
                    stream.join(self._streams[chosen])
                return self._replicas[chosen]

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self.places.heard(replica_id, num_ongoing_requests)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called once for each choice, also where the replica has rejected the request."""
        del internal_request_id
        self.places.give_back(replica_id)

    async def _ask(self) -> None:
        """Keep the numbers true, and find who hangs."""
        for look in itertools.count(1):
            await asyncio.sleep(self._ask_every_s / LOOKS)
            if look % LOOKS == 0:
                for replica_id, streams in self._streams.items():
                    self.places.set_late(replica_id, streams.late)
                try:
                    self._let_go()
                except Exception:  # whoever hangs is looked for nevertheless
                    logger.exception("streams cannot leave the replicas that are to go")
            for replica_id in self.places.to_ask(self._ask_every_s, self._streams_each):
                replica = self._replicas.get(replica_id)
                # One by one: those that answer are asked no less often for one that does not.
                if replica is not None and replica_id not in self._asked:
                    asking = self._event_loop.create_task(self._ask_one(replica))
                    self._asked[replica_id] = asking
                    asking.add_done_callback(partial(self._was_asked, replica_id))

    def _let_go(self) -> None:
        """Have streams leave the replicas that are to go."""
        until_s = time.monotonic() - self._stay_s
        for key, since_s in list(self._leaving.items()):
            streams = self._streams[key]
            if not streams.members:
                del self._leaving[key], self._streams[key]
            elif since_s <= until_s and self._replicas:
                limit = min(replica.max_ongoing_requests for replica in self._replicas.values())
                room = self.places.room(min(limit, self._streams_each or limit))
                left = streams.leave("its replica is to go", min(room, _AT_ONCE))
                if left:
                    self._count_moved("goes", left)
                    logger.info("%s is to go: %d streams go on elsewhere", key, left)

    def _count_moved(self, reason: str, count: int) -> None:
        callee = self._deployment_id.name
        self._recorder.add(metrics.STREAMS_MOVED, count, callee=callee, reason=reason)

    def _was_asked(self, replica_id: ReplicaID, asking: asyncio.Task[None]) -> None:
        del self._asked[replica_id]
        if not asking.cancelled() and asking.exception() is not None:
            logger.warning("cannot ask %s", replica_id, exc_info=asking.exception())

    async def _ask_one(self, replica: RunningReplica) -> None:
        replica_id, began_s = replica.replica_id, time.monotonic()
        try:
            async with asyncio.timeout(self._answer_s):
                num_streams = await replica.get_queue_len(deadline_s=self._answer_s)
            self.places.heard(replica_id, num_streams)
        except TimeoutError:
            streams = self._streams.get(replica_id)
            if streams is None or streams.heard_s >= began_s:
                return  # gone; or slow to answer, yet its streams go on
            times = self.places.not_heard(replica_id)
            if times >= _UNHEARD and self.places.answering:
                left = streams.leave("its replica does not answer")
                if left:
                    self._count_moved("hangs", left)
                    logger.warning(
                        "%s has not answered %d times: %d streams go on elsewhere",
                        replica_id,
                        times,
                        left,
                    )
        except ActorDiedError:
            # As Serve's own router does it where it asks: its controller takes longer to find out.
            self.on_replica_actor_died(replica_id)
        except RayActorError:
            pass  # Serve tells who is live


def stage(deployment: DeploymentID, places: int) -> StagePlaces:
    """A stage as its router in this process knows it."""
    return StagePlaces(partial(FewestStreams.places_of, deployment), places)
