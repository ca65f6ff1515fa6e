"""A talker's session: where it leads, when it is over, and what follows it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from serve_app.deployments.predictor_session import PredictorSession
from tests.waiting import until


class Stream:
    """As Serve gives one: items, an end or an error, and `cancel`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cancelled = False
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._items.put_nowait(f"endpoint of {name}")

    def load(self, talkers: float) -> None:
        self._items.put_nowait({"talkers": talkers})

    def end(self, error: Exception | None = None) -> None:
        self._items.put_nowait(error or StopAsyncIteration())

    def cancel(self) -> None:
        self.is_cancelled = True
        self.end(ConnectionError("cancelled"))

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Any:
        item = await self._items.get()
        if isinstance(item, Exception):
            raise item
        return item


class Replicas:
    """Predictors by name, in the order in which Serve would choose them."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.opened: list[Stream] = []
        self.asked: list[tuple[str, str]] = []

    def open(self, talker_id: str, node: str) -> Stream:
        self.asked.append((talker_id, node))
        if not self.names:
            raise ConnectionError("no replica")
        self.opened.append(Stream(self.names.pop(0)))
        return self.opened[-1]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def connect(session: PredictorSession, node: str = "here") -> Coroutine[Any, Any, Any]:
    return asyncio.to_thread(session.connect, node)


def test_a_session_says_where_and_how_much_its_own_predictor_has_to_do() -> None:
    async def test() -> None:
        replicas = Replicas("a", "b")
        session = PredictorSession(replicas.open)
        assert await connect(session) == "endpoint of a"
        assert replicas.asked[0][1] == "here"
        replicas.opened[0].load(3)
        await until(lambda: bool(session.load))
        assert session.load == {"talkers": 3}
        assert not session.is_over
        session.close()
        assert replicas.opened[0].is_cancelled

    run(test)


def test_the_next_session_is_open_before_the_engine_hears_of_it() -> None:
    async def test() -> None:
        replicas = Replicas("a", "b")
        session = PredictorSession(replicas.open)
        await connect(session)
        replicas.opened[0].end()
        await until(lambda: session.is_over)
        assert len(replicas.opened) == 2
        assert await connect(session) == "endpoint of b"
        assert not session.is_over
        assert len(replicas.opened) == 2
        assert len({talker for talker, _ in replicas.asked}) == 1
        session.close()

    run(test)


def test_frames_go_on_while_no_next_predictor_is_there() -> None:
    async def test() -> None:
        replicas = Replicas("a")
        session = PredictorSession(replicas.open)
        await connect(session)
        replicas.opened[0].end()
        await until(lambda: len(replicas.asked) == 2)
        assert not session.is_over
        replicas.names.append("b")
        await until(lambda: session.is_over)
        assert await connect(session) == "endpoint of b"
        session.close()

    run(test)


def test_a_lost_predictor_is_given_up_for_another() -> None:
    async def test() -> None:
        replicas = Replicas("a", "b")
        session = PredictorSession(replicas.open)
        await connect(session)
        # The engine's socket is the first to know.
        assert await connect(session) == "endpoint of b"
        assert replicas.opened[0].is_cancelled
        assert not replicas.opened[1].is_cancelled
        session.close()

    run(test)


def test_no_replica_is_worth_another_attempt() -> None:
    async def test() -> None:
        session = PredictorSession(Replicas().open)
        with pytest.raises(OSError, match="no replica"):
            await connect(session)

    run(test)


def test_a_closed_session_opens_no_other() -> None:
    async def test() -> None:
        replicas = Replicas("a", "b")
        session = PredictorSession(replicas.open)
        await connect(session)
        session.close()
        replicas.opened[0].end()
        await asyncio.sleep(0.01)
        assert len(replicas.opened) == 1

    run(test)
