"""Serve's router for streams: the replica with the fewest, at once, or the word that all are full.

Serve's own router keeps what no replica takes in a queue, and has two tasks per replica look for
room with pauses of up to half a second: with 300 clients before 64 places, requests sat there for
half a minute while places were free. Here nothing is queued. Who finds all replicas full is told so
in the same turn of the event loop, and is refused by the ingress, where it can be.

It replaces `_choose_replica_for_request`, as `ray.serve.experimental.capacity_queue_router` does.
"""

import asyncio
import logging
import time
from functools import partial
from typing import ClassVar, Final

from ray.exceptions import RayActorError
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.errors import Overloaded, StageUnavailable
from serve_app.load.gate import Stage
from serve_app.load.places import Places

# How often replicas with streams are asked how many they have, unless a call has just told, and how
# long one may take to answer.
_ASK_EVERY_S: Final = 0.5
_ANSWER_S: Final = 1.0
# Times in a row that a replica may not answer before the log says so.
_UNHEARD: Final = 4

logger = logging.getLogger(__name__)


class FewestStreams(RequestRouter):
    """Sends each call to the replica with the fewest streams, and waits for none but the first.

    Raises (in the caller's stream):
        Overloaded: every replica has as many calls as it takes.
        StageUnavailable: those that have room are about to go.
    """

    # By deployment, for whoever wants to know how much room there is; of several handles in a
    # process, the one that was used first.
    known: ClassVar[dict[str, "FewestStreams"]] = {}

    def initialize_state(
        self, *, ask_every_s: float = _ASK_EVERY_S, answer_s: float = _ANSWER_S
    ) -> None:
        self._ask_every_s = ask_every_s
        self._answer_s = answer_s
        self.places: Places[ReplicaID] = Places(time.monotonic)
        self._asking: asyncio.Task[None] | None = None
        self.known.setdefault(self._deployment_id.name, self)

    @classmethod
    def places_of(cls, deployment: str) -> Places[ReplicaID] | None:
        """What this process knows of a deployment; None: nothing yet."""
        router = cls.known.get(deployment)
        return router.places if router is not None else None

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self.places.set_live(self._replicas)
        if self._asking is None:
            self._asking = self._event_loop.create_task(self._ask())

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self.places.set_live(self._replicas)

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
            chosen = self.places.take(limit, asked)
            if chosen is None:
                if self.places.has_room(limit):
                    raise StageUnavailable("the replicas that have room are about to go")
                raise Overloaded(f"{len(self.places)} replicas have {limit} requests each")
            if chosen in self._replicas:
                asked.append(chosen)
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
        while True:
            await asyncio.sleep(self._ask_every_s)
            asked = [
                replica
                for replica_id in self.places.to_ask(self._ask_every_s)
                if (replica := self._replicas.get(replica_id)) is not None
            ]
            await asyncio.gather(*(self._ask_one(replica) for replica in asked))

    async def _ask_one(self, replica: RunningReplica) -> None:
        replica_id = replica.replica_id
        try:
            async with asyncio.timeout(self._answer_s):
                num_streams = await replica.get_queue_len(deadline_s=self._answer_s)
            self.places.heard(replica_id, num_streams)
        except TimeoutError:
            times = self.places.not_heard(replica_id)
            if times == _UNHEARD:
                logger.warning("%s has not answered %d times: it hangs", replica_id, times)
        except RayActorError:
            pass  # Serve tells who is live
        except Exception:
            logger.warning("cannot ask %s", replica_id, exc_info=True)


def stage(deployment: str, places: int) -> Stage:
    """A stage as its router in this process knows it."""
    return Stage(partial(FewestStreams.places_of, deployment), places)
