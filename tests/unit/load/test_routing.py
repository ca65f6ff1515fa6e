"""Serve's router of the stages: a call finds its replica at once, or the word that all are full.

The router is Serve's base class with our choice; its replicas answer here as Serve's would.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve._private.request_router.common import PendingRequest
from ray.serve.config import RequestRouterConfig

from serve_app.deployments.limits import ROUTER
from serve_app.errors import Overloaded, StageUnavailable
from serve_app.load.routing import FewestStreams

STAGE = DeploymentID("Stage", "tts")


class Replica:
    """What a router needs of a replica. It hangs while `answers` is not set."""

    def __init__(self, name: str, limit: int) -> None:
        self.replica_id = ReplicaID(name, STAGE)
        self.max_ongoing_requests = limit
        self.streams = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def get_queue_len(self, *, deadline_s: float) -> int:
        del deadline_s
        await self.answers.wait()
        return self.streams


def router_of(*replicas: Replica, **options: float) -> FewestStreams:
    router = FewestStreams(
        deployment_id=STAGE,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state(**options)
    router.update_replicas(list(replicas))  # pyright: ignore[reportArgumentType]
    return router


def pending(number: int) -> PendingRequest:
    metadata = RequestMetadata(request_id=str(number), internal_request_id=str(number))
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_of_300_requests_for_64_places_none_is_held() -> None:
    async def main() -> None:
        router = router_of(Replica("a", 32), Replica("b", 32))
        tasks = [
            asyncio.create_task(router._choose_replica_for_request(pending(number)))
            for number in range(300)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(task.done() for task in tasks)
        refused = [task for task in tasks if task.exception() is not None]
        assert len(refused) == 236
        assert all(isinstance(task.exception(), Overloaded) for task in refused)
        chosen = [task.result().replica_id.unique_id for task in tasks if task not in refused]
        assert (chosen.count("a"), chosen.count("b")) == (32, 32)
        for number in range(5):
            router.on_request_completed(ReplicaID("a", STAGE), str(number))
        assert (await router._choose_replica_for_request(pending(300))).replica_id.unique_id == "a"

    run(main())


def test_serve_hands_out_the_class_that_others_know() -> None:
    """It is pickled on the way, and what it knows of replicas is found by the class."""
    config = RequestRouterConfig(request_router_class=ROUTER)  # pyright: ignore[reportArgumentType]
    assert config.get_request_router_class() is FewestStreams


def test_who_rejects_is_not_asked_again_for_the_same_request() -> None:
    async def main() -> None:
        replicas = Replica("a", 4), Replica("b", 4)
        router = router_of(*replicas)
        request = pending(1)
        first = await router._choose_replica_for_request(request)
        router.on_request_completed(first.replica_id, "1")
        second = await router._choose_replica_for_request(request, is_retry=True)
        assert {first.replica_id, second.replica_id} == {r.replica_id for r in replicas}
        router.on_request_completed(second.replica_id, "1")
        with pytest.raises(StageUnavailable, match="about to go"):
            await router._choose_replica_for_request(request, is_retry=True)

    run(main())


def test_a_request_waits_while_there_is_no_replica_at_all() -> None:
    async def main() -> None:
        router = router_of()
        choosing = asyncio.create_task(router._choose_replica_for_request(pending(1)))
        await asyncio.sleep(0.01)
        assert not choosing.done()
        router.update_replicas([Replica("a", 4)])  # pyright: ignore[reportArgumentType]
        assert (await choosing).replica_id.unique_id == "a"

    run(main())


def test_a_replica_that_does_not_answer_gets_no_new_streams_until_it_does() -> None:
    async def main() -> None:
        hangs, works = Replica("a", 4), Replica("b", 4)
        router = router_of(hangs, works, ask_every_s=0.01, answer_s=0.02)
        chosen = [await router._choose_replica_for_request(pending(number)) for number in range(4)]
        assert sorted(replica.replica_id.unique_id for replica in chosen) == ["a", "a", "b", "b"]
        hangs.streams = works.streams = 2
        hangs.answers.clear()
        async with asyncio.timeout(30):
            while router.places.answering == 2:
                await asyncio.sleep(0.01)
        for number in (9, 10):
            found = await router._choose_replica_for_request(pending(number))
            assert found.replica_id.unique_id == "b"
        hangs.answers.set()
        async with asyncio.timeout(30):
            while router.places.answering < 2:
                await asyncio.sleep(0.01)

    run(main())
