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


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_stream_is_late_when_its_listener_has_to_wait_and_for_a_while_after_it() -> None:
    async def main() -> None:
        clock, group = Clock(), Streams()
        stream = Stream(clock, first_s=1.0)
        stream.join(group)
        source: asyncio.Queue[int] = asyncio.Queue()

        async def audio() -> AsyncGenerator[int, None]:
            while True:
                yield await source.get()

        made = audio()

        async def comes(after_s: float, audio_s: float) -> int:
            """How many are late before the audio comes, which was asked for so long."""
            task = await waiting(stream, made)
            clock.now_s += after_s
            late = group.late
            source.put_nowait(0)
            await task
            stream.made(audio_s)
            return late

        assert await comes(0.9, 1.0) == 0
        assert await comes(0.5, 0.25) == 0
        # Of 1.25 s half a second was heard.
        assert await comes(0.7, 0.5) == 0
        assert await comes(0.6, 4.0) == 1
        assert group.late == 1
        clock.now_s += 1.9
        assert group.late == 1
        clock.now_s += 0.2
        assert group.late == 0
        # A reader that comes late has itself to blame.
        clock.now_s += 10.0
        assert await comes(0.1, 1.0) == 0
        assert group.late == 0

    asyncio.run(main())


def test_a_first_audio_that_does_not_come_is_late_and_a_session_never_is() -> None:
    async def main() -> None:
        clock = Clock()
        stream, session = Stream(clock, first_s=1.0), Stream(clock)
        waits = [await waiting(one, items(silent=True)) for one in (stream, session)]
        assert not stream.is_late
        clock.now_s += 1.5
        assert stream.is_late
        assert not session.is_late
        for wait in waits:
            wait.cancel()

    asyncio.run(main())


def test_a_replica_that_has_no_room_for_a_stream_is_told_of() -> None:
    refused: list[str] = []
    stream, group = Stream(), Streams(lambda: refused.append("a"))
    stream.refused()
    stream.join(group)
    stream.refused()
    stream.join(None)
    stream.refused()
    assert refused == ["a"]
