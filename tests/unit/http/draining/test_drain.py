"""The end of an ingress, for who comes to it late."""

import asyncio

import pytest

from serve_app.errors import ServerDraining
from serve_app.http.draining.drain import Drain


def test_who_comes_after_the_cut_begins_nothing() -> None:
    begun: list[int] = []

    async def work() -> None:
        begun.append(1)

    async def scenario() -> None:
        drain = Drain()
        await drain.until_cut(work)
        drain.cut()
        with pytest.raises(ServerDraining):
            await drain.until_cut(work)

    asyncio.run(scenario())
    assert begun == [1]


def test_a_cut_ends_what_waits() -> None:
    async def scenario() -> None:
        drain, ended = Drain(), False

        async def work() -> None:
            nonlocal ended
            try:
                await asyncio.Event().wait()
            finally:
                ended = True

        waiting = asyncio.create_task(drain.until_cut(work))
        await asyncio.sleep(0)
        drain.cut()
        with pytest.raises(ServerDraining):
            await waiting
        assert ended

    asyncio.run(scenario())
