"""The metrics of all nodes, whatever one of them answers."""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from serve_app.deployments import agents

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ntts 1\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ntts 2\n\r\n0\r\n\r\n"
BAD = (
    b"what?\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ntts",
    b"HTTP/1.1 500 No\r\n\r\n",
    b"",
)

Answer: TypeAlias = Callable[[], Awaitable[bytes]]


def node(port: int, alive: bool = True) -> dict[str, object]:
    return {"Alive": alive, "MetricsExportPort": port, "NodeManagerAddress": "127.0.0.1"}


class Cluster:
    """Agents on this machine, each with an answer of its own, and what Ray says of their nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
        self.nodes: list[dict[str, object]] = []
        self.asked: Counter[int] = Counter()
        self.left = asyncio.Event()
        self.agents = agents.Agents(**limits)
        monkeypatch.setattr(agents.ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(agents, "_MAX_AGE_S", -1.0)

    async def add(self, answer: Answer, alive: bool = True) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.asked[port] += 1
            await reader.readuntil(b"\r\n\r\n")
            leaves = asyncio.create_task(reader.read())
            leaves.add_done_callback(lambda _: self.left.set())
            writer.write(await answer())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.nodes.append(node(port, alive))
        return port

    async def texts(self) -> list[str]:
        return list(await self.agents.texts())


def saying(answer: bytes) -> Answer:
    async def say() -> bytes:
        return answer

    return say


def after(event: asyncio.Event, answer: bytes = GOOD) -> Answer:
    async def say() -> bytes:
        await event.wait()
        return answer

    return say


def test_an_agent_that_answers_nonsense_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        cluster = Cluster(monkeypatch, timeout_s=20.0)
        for answer in (*BAD, GOOD, CHUNKED):
            await cluster.add(saying(answer))
        for _ in range(3):
            assert sorted(await cluster.texts()) == ["tts 1\n", "tts 2\n"]

    asyncio.run(main())


def test_all_are_asked_at_once_and_dead_ones_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answers only when all have been asked: in turn, nobody ever would."""

    async def main() -> None:
        cluster = Cluster(monkeypatch, timeout_s=20.0)
        last, waiting = asyncio.Event(), []

        async def together() -> bytes:
            waiting.append(1)
            if len(waiting) == 40:
                last.set()
            await last.wait()
            return GOOD

        for _ in range(40):
            await cluster.add(together)
        dead = await cluster.add(saying(GOOD), alive=False)
        assert await cluster.texts() == ["tts 1\n"] * 40
        assert cluster.asked[dead] == 0

    asyncio.run(main())


def test_nobody_waits_a_second_time_for_one_that_is_silent_until_it_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cluster = Cluster(monkeypatch, timeout_s=0.5, silent_s=0.0)
        back = asyncio.Event()
        silent = await cluster.add(after(back, b"HTTP/1.1 200 OK\r\n\r\ntts 3\n"))
        assert await cluster.texts() == []
        await cluster.add(saying(GOOD))
        for _ in range(5):
            assert await cluster.texts() == ["tts 1\n"]
        assert cluster.asked[silent] == 1
        assert len(caplog.records) == 1
        back.set()
        async with asyncio.timeout(20):
            while len(await cluster.texts()) == 1:
                await asyncio.sleep(0.01)
        assert sorted(await cluster.texts()) == ["tts 1\n", "tts 3\n"]

    asyncio.run(main())


def test_one_that_ray_calls_dead_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        cluster = Cluster(monkeypatch, timeout_s=0.5, silent_s=0.0)
        await cluster.add(after(asyncio.Event()))
        assert await cluster.texts() == []
        cluster.nodes[0]["Alive"] = False
        assert not cluster.left.is_set()
        assert await cluster.texts() == []
        async with asyncio.timeout(20):
            await cluster.left.wait()

    asyncio.run(main())


def test_where_ray_does_not_answer_those_that_were_known_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        cluster = Cluster(monkeypatch, timeout_s=1.0)
        await cluster.add(saying(GOOD))
        assert await cluster.texts() == ["tts 1\n"]
        gate, asked = threading.Event(), []

        def away() -> list[dict[str, object]]:
            asked.append(1)
            gate.wait(20)
            raise ConnectionError("no GCS")

        monkeypatch.setattr(agents.ray, "nodes", away)
        try:
            for _ in range(3):
                assert await cluster.texts() == ["tts 1\n"]
            assert len(asked) == 1
        finally:
            gate.set()
        assert await cluster.texts() == ["tts 1\n"]

    asyncio.run(main())
