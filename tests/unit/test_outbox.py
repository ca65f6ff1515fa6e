"""Items reach their streams in order, and nobody waits for another stream's first audio."""

import asyncio
import threading
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from serve_app.errors import StageFailed
from serve_app.models.talker.outbox import Outbox, TalkerStream
from serve_app.types import CodecFrames

WAIT_S = 10.0


class Audio:
    """Samples that are there once `made` is set; those of a row are its number."""

    def __init__(self, rows: list[int], error: Exception | None = None) -> None:
        self.rows, self.error, self.made = rows, error, threading.Event()

    def fetch(self) -> Mapping[int, np.ndarray]:
        assert self.made.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return {row: np.array([row], np.int16) for row in self.rows}


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    box = Outbox()
    yield box
    box.close()


def stream() -> TalkerStream:
    return TalkerStream(asyncio.get_running_loop(), asyncio.Queue())


def frame(number: int) -> CodecFrames:
    return CodecFrames(np.zeros((1, 16), np.int64), number, None)


async def received(stream: TalkerStream, count: int) -> list[int]:
    """The numbers of the next `count` frames."""
    numbers = []
    for _ in range(count):
        item = await asyncio.wait_for(stream.queue.get(), WAIT_S)
        assert isinstance(item, CodecFrames)
        numbers.append(item.first_frame)
    return numbers


def test_what_follows_first_audio_is_held_back_and_others_pass(outbox: Outbox) -> None:
    async def run() -> None:
        first, other = stream(), stream()
        audio = Audio([3])
        outbox.deliver_audio(audio, [(first, 3, frame(0))], wait=False)
        outbox.deliver([(first, frame(1)), (other, frame(7))])
        outbox.deliver([(first, frame(2))])
        assert await received(other, 1) == [7]
        await asyncio.sleep(0.05)
        assert first.queue.empty()
        audio.made.set()
        item = await asyncio.wait_for(first.queue.get(), WAIT_S)
        assert isinstance(item, CodecFrames)
        assert item.first_frame == 0
        assert item.samples is not None
        assert item.samples.tolist() == [3]
        assert await received(first, 2) == [1, 2]
        outbox.deliver([(first, frame(3))])
        assert await received(first, 1) == [3]

    asyncio.run(run())


def test_the_order_survives_any_interleaving(outbox: Outbox) -> None:
    async def run() -> None:
        streams = [stream() for _ in range(50)]
        for index, one in enumerate(streams):
            audio = Audio([index])
            outbox.deliver_audio(audio, [(one, index, frame(0))], wait=False)
            threading.Timer(0.0005 * (index % 3), audio.made.set).start()
            for number in range(1, 20):
                outbox.deliver([(one, frame(number))])
        for one in streams:
            assert await received(one, 20) == list(range(20))

    asyncio.run(run())


def test_waiting_here_hands_out_at_once(outbox: Outbox) -> None:
    async def run() -> None:
        one = stream()
        audio = Audio([0])
        audio.made.set()
        outbox.deliver_audio(audio, [(one, 0, frame(0))], wait=True)
        assert await received(one, 1) == [0]

    asyncio.run(run())


def test_audio_that_cannot_be_made_fails_its_streams_only(outbox: Outbox) -> None:
    async def run() -> None:
        lost, other = stream(), stream()
        broken = Audio([0], RuntimeError("device lost"))
        outbox.deliver_audio(broken, [(lost, 0, frame(0))], wait=False)
        broken.made.set()
        item = await asyncio.wait_for(lost.queue.get(), WAIT_S)
        assert isinstance(item, StageFailed)
        assert "device lost" in str(item)
        fine = Audio([0])
        fine.made.set()
        outbox.deliver_audio(fine, [(other, 0, frame(0))], wait=False)
        assert await received(other, 1) == [0]

    asyncio.run(run())


def test_a_failure_does_not_wait_for_first_audio(outbox: Outbox) -> None:
    async def run() -> None:
        one = stream()
        audio = Audio([0])
        outbox.deliver_audio(audio, [(one, 0, frame(0))], wait=False)
        outbox.deliver([(one, StageFailed("the engine died"))])
        item = await asyncio.wait_for(one.queue.get(), WAIT_S)
        assert isinstance(item, StageFailed)
        audio.made.set()

    asyncio.run(run())


def test_a_closed_event_loop_stops_nobody(outbox: Outbox) -> None:
    async def make() -> TalkerStream:
        return stream()

    gone = asyncio.run(make())

    async def run() -> None:
        here = stream()
        outbox.deliver([(gone, frame(0)), (here, frame(0))])
        assert await received(here, 1) == [0]

    asyncio.run(run())
