import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.errors import Overloaded, StageFailed
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_codes
from serve_app.pipeline import coalesce, join, synthesize, with_deadlines
from serve_app.types import CodecFrames, PcmChunk, SpeechRequest

SCHEDULE = (1, 2, 4)
REQUEST = SpeechRequest("r", "m", "Hello.", "vivian", "auto", seed=7)


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


def frames(*lengths, finish="stop"):
    items, first = [], 0
    for number, length in enumerate(lengths):
        codes = np.arange(first, first + length)[:, None] + np.zeros((1, 2), dtype=np.int64)
        last = number == len(lengths) - 1
        items.append(CodecFrames(codes.astype(np.int64), first, finish if last else None))
        first += length
    return items


async def collect(stream):
    async with aclosing(stream) as items:
        return [item async for item in items]


def regroup(source):
    return asyncio.run(collect(coalesce(source.stream(), SCHEDULE)))


@pytest.mark.parametrize("total", range(1, 25))
def test_coalesce_keeps_every_frame_in_order_and_follows_the_schedule(total):
    source = Source(frames(*[1] * total))
    items = regroup(source)
    codes = np.concatenate([item.codes for item in items])
    np.testing.assert_array_equal(codes[:, 0], np.arange(total))
    assert [item.first_frame for item in items] == [int(item.codes[0, 0]) for item in items]
    planned = [1, 2, 4, 4, 4, 4, 4, 4]
    sizes = [len(item.codes) for item in items]
    assert sizes[:-1] == planned[: len(sizes) - 1]
    assert 1 <= sizes[-1] <= planned[len(sizes) - 1]
    assert [item.finish_reason for item in items] == [None] * (len(items) - 1) + ["stop"]
    assert source.closed


def test_coalesce_cuts_longer_items_to_the_schedule():
    items = regroup(Source(frames(5, 1, 9, finish="length")))
    assert [len(item.codes) for item in items] == [1, 2, 4, 4, 4]
    assert items[-1].finish_reason == "length"


@pytest.mark.parametrize(("lengths", "expected"), [((1, 1, 0), [1, 1]), ((1, 1, 1, 0), [1, 2, 0])])
def test_coalesce_passes_on_an_empty_tail(lengths, expected):
    items = regroup(Source(frames(*lengths)))
    assert [len(item.codes) for item in items] == expected
    assert [item.finish_reason for item in items] == [None] * (len(items) - 1) + ["stop"]


def test_coalesce_does_not_wait_for_more_than_the_first_frame():
    async def main():
        talker = FakeTalker(num_frames=10)
        async with (
            aclosing(talker.frames(REQUEST)) as stream,
            aclosing(coalesce(stream, SCHEDULE)) as chunks,
        ):
            first = await anext(chunks)
            assert len(first.codes) == 1
            following = await anext(stream)
            assert following.first_frame == 1

    asyncio.run(main())


def test_coalesce_fails_when_the_stream_ends_without_a_reason():
    source = Source(frames(1, 1, 1, finish=None))
    with pytest.raises(StageFailed):
        regroup(source)
    assert source.closed


def test_coalesce_passes_an_error_on_and_closes_its_input_when_closed():
    source = Source([*frames(1, 1, finish=None), Overloaded("full")])
    with pytest.raises(Overloaded):
        regroup(source)

    async def main():
        source = Source(frames(*[1] * 9))
        chunks = coalesce(source.stream(), SCHEDULE)
        await anext(chunks)
        assert not source.closed
        await chunks.aclose()
        assert source.closed

    asyncio.run(main())


def expected_samples(num_frames, first=0):
    codes = np.concatenate([fake_codes(REQUEST.seed, t) for t in range(first, num_frames)])
    return FakeSpeechDecoder().decode(codes, first)


@pytest.mark.parametrize("schedule", [(1,), (1, 2, 4, 8, 12), (3,), (100,)])
def test_any_schedule_gives_the_same_samples(schedule):
    talker, decoder = FakeTalker(num_frames=21), FakeSpeechDecoder()
    stream = synthesize(talker, decoder, REQUEST, schedule)
    whole = asyncio.run(join(stream))
    np.testing.assert_array_equal(whole.samples, expected_samples(21))
    assert whole.finish_reason == "stop"
    assert (talker.running, decoder.streams) == (0, 0)


@pytest.mark.parametrize("num_done", [1, 5, 20])
def test_a_resumed_stream_yields_exactly_the_rest(num_done):
    done = np.concatenate([fake_codes(REQUEST.seed, t) for t in range(num_done)])
    stream = synthesize(FakeTalker(num_frames=21), FakeSpeechDecoder(), REQUEST, SCHEDULE, done)
    rest = asyncio.run(join(stream))
    np.testing.assert_array_equal(rest.samples, expected_samples(21, num_done))
    assert rest.first_sample == num_done * 1920


def test_closing_a_synthesis_frees_every_stage():
    async def main():
        talker, decoder = FakeTalker(num_frames=21), FakeSpeechDecoder()
        stream = synthesize(talker, decoder, REQUEST, SCHEDULE)
        await anext(stream)
        assert (talker.running, decoder.streams) == (1, 1)
        await stream.aclose()
        assert (talker.running, decoder.streams) == (0, 0)

    asyncio.run(main())


def test_a_failure_frees_every_stage():
    talker = FakeTalker(num_frames=21, fail_at=4, error=StageFailed("broken"))
    decoder = FakeSpeechDecoder()
    with pytest.raises(StageFailed, match="broken"):
        asyncio.run(join(synthesize(talker, decoder, REQUEST, SCHEDULE)))
    assert (talker.running, decoder.streams) == (0, 0)


def pcm(first_sample, finish=None):
    return PcmChunk(np.zeros(2, np.int16), first_sample, np.zeros((1, 2), np.int64), finish)


@pytest.mark.parametrize(
    ("delays_s", "missing"), [((5, 0), "first audio"), ((0, 5), "further audio")]
)
def test_a_silent_stream_is_closed_and_fails(delays_s, missing):
    async def main():
        closed = []

        async def slow():
            try:
                for number, delay_s in enumerate(delays_s):
                    await asyncio.sleep(delay_s)
                    yield pcm(number)
            finally:
                closed.append(True)

        with pytest.raises(StageFailed, match=f"no {missing} within 0.02 s"):
            await collect(with_deadlines(slow(), 0.02, 0.02))
        assert closed == [True]

    asyncio.run(main())


def test_a_slow_listener_does_not_use_up_the_deadline():
    async def main():
        source = Source([pcm(0), pcm(2), pcm(4, "stop")])
        seen = 0
        async with aclosing(with_deadlines(source.stream(), 0.05, 0.05)) as chunks:
            async for _ in chunks:
                await asyncio.sleep(0.08)
                seen += 1
        assert seen == 3
        assert source.closed

    asyncio.run(main())


def test_a_timeout_inside_a_stage_is_not_taken_for_the_deadline():
    source = Source([TimeoutError("socket")])
    with pytest.raises(TimeoutError, match="socket"):
        asyncio.run(collect(with_deadlines(source.stream(), 5, 5)))


@pytest.mark.parametrize("chunks", [[], [pcm(0), pcm(2)]])
def test_join_refuses_a_stream_without_an_end(chunks):
    with pytest.raises(StageFailed):
        asyncio.run(join(Source(chunks).stream()))
