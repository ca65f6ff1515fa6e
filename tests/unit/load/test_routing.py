"""Serve's router of the stages: a call finds its replica at once, or the word that all are full.

The router is Serve's base class with our choice; its replicas answer here as Serve's would.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve._private.request_router.common import PendingRequest
from ray.serve.config import RequestRouterConfig

from serve_app import metrics
from serve_app.deployments.limits import ROUTER
from serve_app.errors import Overloaded, StageUnavailable
from serve_app.load.routing import FewestStreams
from serve_app.load.streams import CALLING, Stream

STAGE = DeploymentID("Stage", "tts")


class Replica:
    """What a router needs of a replica. It hangs while `answers` is not set."""

    def __init__(self, name: str, limit: int, node: str = "node") -> None:
        self.replica_id = ReplicaID(name, STAGE)
        self.max_ongoing_requests = limit
        self.node_id = node
        self.streams = 0
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def get_queue_len(self, *, deadline_s: float) -> int:
        del deadline_s
        self.asked += 1
        await self.answers.wait()
        return self.streams


def router_of(*replicas: Replica, own_node: str | None = None, **options: Any) -> FewestStreams:
    router = FewestStreams(
        deployment_id=STAGE,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
        self_node_id=own_node,
        prefer_local_node_routing=own_node is not None,
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


async def silence() -> AsyncGenerator[int, None]:
    await asyncio.Event().wait()
    yield 0


async def routed(router: FewestStreams, number: int) -> tuple[str, asyncio.Task[int]]:
    """Where a stream was sent, and its wait for an item."""
    stream = Stream()
    CALLING.set(stream)
    chosen = await router._choose_replica_for_request(pending(number))
    return chosen.replica_id.unique_id, asyncio.create_task(stream.next(silence()))


def test_streams_leave_a_replica_that_does_not_answer_while_another_one_does() -> None:
    async def main() -> None:
        hangs, works = Replica("a", 4), Replica("b", 4)
        router = router_of(hangs, works, ask_every_s=0.01, answer_s=0.02)
        waits = [await routed(router, number) for number in range(4)]
        hangs.streams = works.streams = 2
        hangs.answers.clear()
        for name, wait in waits:
            if name == "a":
                with pytest.raises(StageUnavailable, match="does not answer"):
                    await asyncio.wait_for(wait, 30)
        assert not any(wait.done() for name, wait in waits if name == "b")

    run(main())


def test_streams_stay_where_no_replica_answers() -> None:
    async def main() -> None:
        replica = Replica("a", 4)
        router = router_of(replica, ask_every_s=0.01, answer_s=0.02)
        _, wait = await routed(router, 1)
        replica.streams = 1
        replica.answers.clear()
        async with asyncio.timeout(30):
            while replica.asked < 6:
                await asyncio.sleep(0.01)
        assert not wait.done()
        # Until there is an elsewhere.
        router.update_replicas([replica, Replica("b", 4)])  # pyright: ignore[reportArgumentType]
        with pytest.raises(StageUnavailable, match="does not answer"):
            await asyncio.wait_for(wait, 30)

    run(main())


async def moving(router: FewestStreams, number: int) -> None:
    """A stream that goes on elsewhere when it is told to."""
    _, wait = await routed(router, number)
    with pytest.raises(StageUnavailable, match="is to go"):
        await wait
    assert (await routed(router, number))[0] == "b"


def test_streams_of_a_replica_that_is_to_go_leave_when_others_have_room_for_them() -> None:
    async def main() -> None:
        goes, stays = Replica("a", 8), Replica("b", 8)
        router = router_of(goes, places=4, ask_every_s=0.1, answer_s=30, stay_s=0.1)
        streams = [asyncio.create_task(moving(router, number)) for number in range(6)]
        await asyncio.sleep(0)
        router.update_replicas([stays])  # pyright: ignore[reportArgumentType]
        async with asyncio.timeout(30):
            while sum(stream.done() for stream in streams) < 4:
                await asyncio.sleep(0.01)
        stays.streams = 4
        # There is no room for the others.
        await asyncio.sleep(0.5)
        moved = [stream for stream in streams if stream.done()]
        assert len(moved) == 4
        for stream in moved:
            await stream

    run(main())


def test_streams_of_a_replica_that_comes_back_stay() -> None:
    async def main() -> None:
        replica, other = Replica("a", 8), Replica("b", 8)
        router = router_of(replica, other, ask_every_s=0.01, answer_s=30, stay_s=0.01)
        waits = [(await routed(router, number))[1] for number in range(4)]
        # In one turn of the event loop, as a controller that starts again tells it.
        router.update_replicas([other])  # pyright: ignore[reportArgumentType]
        router.update_replicas([replica, other])  # pyright: ignore[reportArgumentType]
        await asyncio.sleep(0.1)
        assert not any(wait.done() for wait in waits)

    run(main())


def test_a_handle_that_prefers_its_node_is_sent_there_while_there_is_room() -> None:
    async def main() -> None:
        far, near = Replica("far", 2, node="other"), Replica("near", 2, node="own")
        router = router_of(far, near, own_node="own")
        chosen = [
            (await router._choose_replica_for_request(pending(number))).replica_id.unique_id
            for number in range(4)
        ]
        assert chosen == ["near", "near", "far", "far"]

    run(main())


def test_a_replica_whose_streams_go_on_may_be_slow_to_answer() -> None:
    async def main() -> None:
        slow, works = Replica("a", 1), Replica("b", 1)
        router = router_of(slow, works, ask_every_s=0.01, answer_s=0.4)
        streams: dict[str, Stream] = {}
        for number in range(2):
            CALLING.set(stream := Stream())
            chosen = await router._choose_replica_for_request(pending(number))
            streams[chosen.replica_id.unique_id] = stream
        slow.streams = works.streams = 1
        slow.answers.clear()
        for _ in range(100):
            assert await streams["a"].next(numbers()) == 1
            await asyncio.sleep(0.01)
        assert router.places.answering == 2

    run(main())


async def numbers() -> AsyncGenerator[int, None]:
    yield 1


def test_new_streams_avoid_a_replica_whose_listeners_wait() -> None:
    async def main() -> None:
        slow, quick = Replica("a", 8), Replica("b", 8)
        router = router_of(slow, quick, ask_every_s=0.01, answer_s=30)
        streams: dict[str, list[Stream]] = {"a": [], "b": []}
        for number in range(4):
            CALLING.set(stream := Stream(first_s=0.01))
            chosen = await router._choose_replica_for_request(pending(number))
            streams[chosen.replica_id.unique_id].append(stream)
        slow.streams = quick.streams = 2
        for stream in streams["b"]:
            await stream.next(numbers())
            stream.made(60.0)
        waits = [asyncio.create_task(stream.next(silence())) for stream in streams["a"]]
        await asyncio.sleep(0.5)
        for number in range(4, 9):
            chosen = await router._choose_replica_for_request(pending(number))
            assert chosen.replica_id.unique_id == "b"
        for wait in waits:
            wait.cancel()

    run(main())


def test_a_replica_found_dead_is_noted_once_and_gets_no_more_calls() -> None:
    class Counted(metrics.NoRecorder):
        def __init__(self) -> None:
            self.lost: list[str] = []

        def count(self, metric: metrics.Metric, **labels: str) -> None:
            if metric == metrics.REPLICAS_LOST:
                self.lost.append(labels["callee"])

    class Dead(Replica):
        async def get_queue_len(self, *, deadline_s: float) -> int:
            del deadline_s
            self.asked += 1
            raise ActorDiedError

    async def main() -> None:
        live, dead = Replica("a", 4), Dead("b", 4)
        router = router_of(live, dead, ask_every_s=0.01)
        router._recorder = recorder = Counted()
        async with asyncio.timeout(10):
            while not recorder.lost:
                await asyncio.sleep(0.01)
        assert recorder.lost == ["Stage"]
        asked = dead.asked
        chosen = {
            (await router._choose_replica_for_request(pending(number))).replica_id
            for number in range(4)
        }
        assert chosen == {live.replica_id}
        # Serve finds out as well, and that is no second loss.
        router.on_replica_actor_died(dead.replica_id)
        assert (recorder.lost, dead.asked) == (["Stage"], asked)

    run(main())
