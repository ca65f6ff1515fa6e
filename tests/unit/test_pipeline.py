import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.errors import StageFailed, StageUnavailable
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_codes
from serve_app.pipeline import join, next_within, synthesize, timed
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
        stopped = []

        async def silent():
            try:
                await asyncio.get_running_loop().create_future()
                yield pcm(0)
            finally:
                stopped.append(True)

        with pytest.raises(StageUnavailable, match="nothing came within"):
            await next_within(silent(), 0.02)
        assert stopped == [True]

    asyncio.run(main())


def test_a_timeout_inside_a_stage_is_not_taken_for_the_deadline():
    source = Source([TimeoutError("socket")])
    with pytest.raises(TimeoutError, match="socket"):
        asyncio.run(next_within(source.stream(), 5))


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
