import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.errors import StageFailed
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_codes
from serve_app.pipeline import Interrupted, Waiting, join, synthesize, timed
from serve_app.types import NamedVoice, PcmChunk, SpeechRequest

SCHEDULE = (1, 2, 4)
REQUEST = SpeechRequest("r", "m", "Hello.", NamedVoice("vivian"), "auto", seed=7)


class Source:
    """A stream of given items that knows whether it was closed; an exception is raised."""

    def __init__(self, items):
        self.items = items
        self.closed = False

    async def stream(self):
        try:
            for item in self.items:
                await asyncio.sleep(0)
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


async def collect(stream):
    async with aclosing(stream) as items:
        return [item async for item in items]


def expected_samples(num_frames, first=0):
    codes = np.concatenate([fake_codes(REQUEST.seed, t) for t in range(first, num_frames)])
    return FakeSpeechDecoder().decode(codes, first)


@pytest.mark.parametrize("schedule", [(1,), (1, 2, 4, 8, 12), (3,), (100,)])
def test_any_schedule_gives_the_same_samples(schedule):
    talker, decoder = FakeTalker(21, chunk_frames=schedule), FakeSpeechDecoder()
    stream = synthesize(talker, decoder, REQUEST)
    whole = asyncio.run(join(stream))
    np.testing.assert_array_equal(whole.samples, expected_samples(21))
    assert whole.finish_reason == "stop"
    assert (talker.running, decoder.streams) == (0, 0)


@pytest.mark.parametrize("num_done", [1, 5, 20])
def test_a_resumed_stream_yields_exactly_the_rest(num_done):
    done = np.concatenate([fake_codes(REQUEST.seed, t) for t in range(num_done)])
    talker = FakeTalker(21, chunk_frames=SCHEDULE)
    stream = synthesize(talker, FakeSpeechDecoder(), REQUEST, done)
    rest = asyncio.run(join(stream))
    np.testing.assert_array_equal(rest.samples, expected_samples(21, num_done))
    assert rest.first_sample == num_done * 1920


def test_closing_a_synthesis_frees_every_stage():
    async def main():
        talker, decoder = FakeTalker(21, chunk_frames=SCHEDULE), FakeSpeechDecoder()
        stream = synthesize(talker, decoder, REQUEST)
        await anext(stream)
        assert (talker.running, decoder.streams) == (1, 1)
        await stream.aclose()
        assert (talker.running, decoder.streams) == (0, 0)

    asyncio.run(main())


def test_a_failure_frees_every_stage():
    talker = FakeTalker(num_frames=21, fail_at=4, error=StageFailed("broken"))
    decoder = FakeSpeechDecoder()
    with pytest.raises(StageFailed, match="broken"):
        asyncio.run(join(synthesize(talker, decoder, REQUEST)))
    assert (talker.running, decoder.streams) == (0, 0)


def pcm(first_sample, finish=None):
    return PcmChunk(np.zeros(2, np.int16), first_sample, np.zeros((1, 2), np.int64), finish)


def test_an_item_that_does_not_come_in_time_ends_the_wait():
    async def main():
        stopped, waiting = [], Waiting()

        async def silent():
            try:
                await asyncio.get_running_loop().create_future()
                yield pcm(0)
            finally:
                stopped.append(True)

        with pytest.raises(Interrupted):
            await waiting.wait(anext(silent()), 0.02)
        assert stopped == [True]
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)  # nothing is left of it

    asyncio.run(main())


def test_each_wait_has_the_whole_of_its_limit():
    """With one timer for all: it rings within the third wait, which goes on."""

    async def main():
        waiting, loop = Waiting(), asyncio.get_running_loop()
        for _ in range(3):
            assert await waiting.wait(asyncio.sleep(0.2, "came"), 0.5) == "came"
        began_s = loop.time()
        with pytest.raises(Interrupted):
            await waiting.wait(asyncio.sleep(60), 0.3)
        assert loop.time() - began_s >= 0.29
        began_s = loop.time()
        with pytest.raises(Interrupted):  # sooner than the timer of the wait before would
            await waiting.wait(asyncio.sleep(60), 0.01)
        waiting.close()

    asyncio.run(main())


def test_time_between_two_waits_does_not_count():
    async def main():
        waiting = Waiting()
        assert await waiting.wait(asyncio.sleep(0, 1), 0.02) == 1
        await asyncio.sleep(0.1)
        assert await waiting.wait(asyncio.sleep(0, 2), 0.02) == 2
        waiting.interrupt()  # nobody waits
        assert await waiting.wait(asyncio.sleep(0, 3)) == 3
        waiting.close()

    asyncio.run(main())


def test_a_wait_is_ended_from_elsewhere_and_by_a_limit_around_it():
    async def main():
        inner, outer = Waiting(), Waiting()

        async def nested():
            return await outer.wait(inner.wait(asyncio.sleep(60)), 5)

        async def first_of(ends):
            task = asyncio.create_task(nested())
            await asyncio.sleep(0.01)
            for end in ends:
                end()
            with pytest.raises((Interrupted, asyncio.CancelledError)) as raised:
                await task
            return raised.type, task.cancelled()

        assert await first_of([inner.interrupt]) == (Interrupted, False)
        assert await first_of([outer.interrupt]) == (Interrupted, False)
        assert await first_of([inner.interrupt, outer.interrupt]) == (Interrupted, False)

        task = asyncio.create_task(nested())
        await asyncio.sleep(0.01)
        task.cancel()
        outer.interrupt()
        with pytest.raises(asyncio.CancelledError):  # who is cancelled is not told of a limit
            await task

    asyncio.run(main())


def test_work_that_ends_in_its_own_way_when_it_is_cut_leaves_no_cancellation_behind():
    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done"

    async def main():
        waiting = Waiting()
        asyncio.get_running_loop().call_later(0.01, waiting.interrupt)
        assert await waiting.wait(stubborn()) == "done"
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())


def test_a_timeout_inside_a_stage_is_not_taken_for_the_deadline():
    source, waiting = Source([TimeoutError("socket")]), Waiting()
    with pytest.raises(TimeoutError, match="socket"):
        asyncio.run(waiting.wait(anext(source.stream()), 5))


@pytest.mark.parametrize("chunks", [[], [pcm(0), pcm(2)]])
def test_join_refuses_a_stream_without_an_end(chunks):
    with pytest.raises(StageFailed):
        asyncio.run(join(Source(chunks).stream()))


def test_the_first_chunk_says_how_long_it_took_at_each_place():
    def source():
        talker = FakeTalker(5, frame_s=0.02)
        return synthesize(talker, FakeSpeechDecoder(), REQUEST)

    chunks = asyncio.run(collect(timed("outer", timed("inner", source()))))
    (inner, inner_s), (outer, outer_s) = chunks[0].timings
    assert (inner, outer) == ("inner", "outer")
    assert 0.02 <= inner_s <= outer_s
    assert all(chunk.timings == () for chunk in chunks[1:])
    whole = asyncio.run(join(timed("all", source())))
    assert [name for name, _ in whole.timings] == ["all"]


def test_a_wait_is_what_a_first_chunk_took_beyond_its_making():
    async def made():
        await asyncio.sleep(0.02)
        yield PcmChunk(np.zeros(0, np.int16), 0, fake_codes(1, 0), "stop", (("stages", 0.005),))

    (chunk,) = asyncio.run(collect(timed("wait", made(), beyond="stages")))
    (_, stages_s), (wait, wait_s) = chunk.timings
    assert (wait, stages_s) == ("wait", 0.005)
    assert 0.015 <= wait_s < 5
