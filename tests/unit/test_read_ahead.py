"""Chunks that wait for a slow reader."""

import asyncio

import numpy as np
import pytest

from serve_app.errors import StageFailed
from serve_app.http.read_ahead import read_ahead
from serve_app.types import PcmChunk


class Source:
    """Ten chunks of 4 samples, then `error` where there is one."""

    def __init__(self, error=None):
        self.error = error
        self.made = 0
        self.closed = False

    async def chunks(self):
        try:
            for number in range(10):
                self.made += 1
                yield PcmChunk(np.full(4, number, np.int16), 4 * number, np.zeros((1, 2), np.int64))
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


async def stalled():
    """For longer than a reader may be away without being taken for a slow one."""
    await asyncio.sleep(0.15)
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_reader_who_waits_gets_each_chunk_straight_from_the_source():
    async def main():
        source, number = Source(), 0
        chunks = read_ahead(source.chunks(), 1000)
        async for _ in chunks:
            number += 1
            assert source.made == number
        assert number == 10

    asyncio.run(main())


def test_a_reader_who_was_slow_waits_for_what_is_not_made_yet():
    async def main():
        go = asyncio.Event()

        async def source():
            for number in range(4):
                if number == 2:
                    await go.wait()
                yield PcmChunk(np.zeros(4, np.int16), 4 * number, np.zeros((1, 2), np.int64))

        seen = []
        async for chunk in read_ahead(source(), 1000):
            seen.append(chunk.first_sample)
            if len(seen) == 1:
                await stalled()
                asyncio.get_running_loop().call_later(0.05, go.set)
        assert seen == [0, 4, 8, 12]

    asyncio.run(main())


@pytest.mark.parametrize("max_samples", [1, 4, 9, 1000])
def test_all_chunks_come_in_order_and_no_more_wait_than_allowed(max_samples):
    async def main():
        source = Source()
        seen = []
        async for chunk in read_ahead(source.chunks(), max_samples):
            seen.append(chunk.first_sample)
            await stalled()
            waiting = source.made - len(seen)
            assert waiting <= -(-max_samples // 4)
        assert seen == [4 * number for number in range(10)]
        assert source.closed

    asyncio.run(main())


def test_the_source_has_ended_before_the_reader_goes_on():
    async def main():
        source = Source()
        chunks = read_ahead(source.chunks(), 1000)
        await anext(chunks)
        await stalled()
        assert source.closed
        await chunks.aclose()

    asyncio.run(main())


def test_a_failure_comes_behind_the_chunks_before_it():
    async def main():
        chunks = read_ahead(Source(StageFailed("broken")).chunks(), 1000)
        for number in range(10):
            await anext(chunks)
            if number == 5:
                await stalled()
        with pytest.raises(StageFailed, match="broken"):
            await anext(chunks)

    asyncio.run(main())


def test_closing_closes_the_source_wherever_it_is():
    async def main():
        for max_samples in (4, 1000):
            source = Source()
            chunks = read_ahead(source.chunks(), max_samples)
            await anext(chunks)
            await chunks.aclose()
            assert source.closed
            source = Source()
            chunks = read_ahead(source.chunks(), max_samples)
            await anext(chunks)
            await stalled()
            await chunks.aclose()
            assert source.closed

    asyncio.run(main())
