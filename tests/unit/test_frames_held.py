"""Frames of many streams become the items that each would have had alone."""

import random

import numpy as np
import pytest

from serve_app.chunking import Chunker
from serve_app.models.talker.frames_held import FramesHeld

GROUPS, STREAMS, STEPS = 4, 7, 200


@pytest.mark.parametrize("sizes", [(1,), (1, 3, 8), (2, 5)])
def test_items_are_those_of_a_chunker_for_each_stream(sizes: tuple[int, ...]) -> None:
    chance, numbers = random.Random(1), iter(range(10**6))
    held = FramesHeld(sizes, GROUPS, lanes=2)
    streams: dict[int, Chunker] = {}
    items = 0
    for _ in range(STEPS):
        while len(streams) < STREAMS and chance.random() < 0.5:
            first = chance.choice((0, 0, 9))
            lane = held.open(first)
            assert lane not in streams
            streams[lane] = Chunker(sizes, first)
        moving = [lane for lane in streams if chance.random() < 0.8]
        codes = np.array([[next(numbers)] * GROUPS for _ in moving]).reshape(-1, GROUPS)
        whole = held.add(np.array(moving, np.int64), codes)
        for place, lane in enumerate(moving):
            expected = streams[lane].add(codes[place : place + 1])
            assert (expected is not None) == (place in whole)
            if expected is not None:
                items += 1
                assert_same(held.take(lane), expected)
        for lane in [lane for lane in streams if chance.random() < 0.05]:
            expected = streams.pop(lane).add(codes[:0], "stop")
            assert expected is not None
            assert_same(held.take(lane, "stop"), expected)
            held.close(lane)
    assert items > STEPS / 2


def assert_same(found, expected) -> None:
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.codes.shape == expected.codes.shape
    assert (found.first_frame, found.finish_reason) == (
        expected.first_frame,
        expected.finish_reason,
    )
