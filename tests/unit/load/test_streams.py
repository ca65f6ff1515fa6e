"""A stream that waits for an item is told to leave, and does."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve_app.errors import StageUnavailable
from serve_app.load.streams import Stream, Streams


async def items(*values: int, silent: bool = False) -> AsyncGenerator[int, None]:
    for value in values:
        yield value
    if silent:
        await asyncio.Event().wait()


async def waiting(stream: Stream, source: AsyncGenerator[int, None]) -> asyncio.Task[int]:
    task = asyncio.create_task(stream.next(source))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_who_waits_for_an_item_is_woken_when_the_stream_has_to_leave() -> None:
    async def main() -> None:
        here, there, stream, other = Streams(), Streams(), Stream(), Stream()
        stream.join(here)
        other.join(there)
        source = items(silent=True)
        task, stays = await waiting(stream, source), await waiting(other, items(silent=True))
        assert here.leave("it hangs") == 1
        with pytest.raises(StageUnavailable, match="it hangs"):
            await task
        assert not stays.done()
        assert not here.members
        stays.cancel()
        await source.aclose()

    asyncio.run(main())


def test_who_comes_after_the_word_does_not_wait_for_an_item() -> None:
    async def main() -> None:
        stream, source = Stream(), items(1, 2, silent=True)
        assert await stream.next(source) == 1
        stream.leave("it hangs")
        with pytest.raises(StageUnavailable, match="it hangs"):
            await stream.next(source)

    asyncio.run(main())


def test_a_stream_ends_as_its_source_does_and_hands_on_its_errors() -> None:
    async def fails() -> AsyncGenerator[int, None]:
        raise TimeoutError("of its own")
        yield 0

    async def main() -> None:
        stream, source = Stream(), items(1)
        assert await stream.next(source) == 1
        with pytest.raises(StopAsyncIteration):
            await stream.next(source)
        with pytest.raises(TimeoutError, match="of its own"):
            await stream.next(fails())

    asyncio.run(main())


def test_a_cancelled_reader_is_cancelled_and_not_told_of_a_loss() -> None:
    async def main() -> None:
        task = await waiting(Stream(), items(silent=True))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_stream_belongs_to_the_replica_that_it_was_given_last() -> None:
    first, second, stream = Streams(), Streams(), Stream(clock=lambda: 5.0)
    stream.join(first)
    stream.join(second)
    assert (first.members, second.members) == (set(), {stream})
    stream.join(None)
    assert not second.members
