"""Frames of many streams become the items that each would have had alone."""

import random

import numpy as np
import pytest

from serve_app.chunking import FramesHeld
from serve_app.types import CodecFrames, FinishReason

SCHEDULE = (1, 2, 4)
GROUPS, STREAMS, STEPS = 4, 7, 200


def frame(number: int) -> np.ndarray:
    return np.full((1, GROUPS), number, np.int64)


def chunked(total: int, first: int = 0, *, tail: bool = False) -> list[CodecFrames]:
    """The items of a stream; with `tail` its end comes without a frame."""
    held = FramesHeld(SCHEDULE, GROUPS)
    lane = held.open(first)
    items = []
    for n in range(total):
        last = n == total - 1 and not tail
        if held.add(np.array([lane]), frame(first + n)) or last:
            items.append(held.take(lane, "stop" if last else None))
    if tail:
        items.append(held.take(lane, "stop"))
    return items


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("total", range(1, 25))
def test_every_frame_is_kept_in_order_and_items_follow_the_schedule(total: int, first: int) -> None:
    items = chunked(total, first)
    codes = np.concatenate([item.codes for item in items])
    np.testing.assert_array_equal(codes[:, 0], first + np.arange(total))
    assert [item.first_frame for item in items] == [int(item.codes[0, 0]) for item in items]
    planned = [1, 2, 4, 4, 4, 4, 4, 4]
    sizes = [len(item.codes) for item in items]
    assert sizes[:-1] == planned[: len(sizes) - 1]
    assert 1 <= sizes[-1] <= planned[len(sizes) - 1]
    assert [item.finish_reason for item in items] == [None] * (len(items) - 1) + ["stop"]


@pytest.mark.parametrize(("total", "sizes"), [(2, [1, 1]), (3, [1, 2, 0]), (0, [0])])
def test_an_end_without_a_frame_closes_the_last_item_or_is_an_empty_one(
    total: int, sizes: list[int]
) -> None:
    items = chunked(total, tail=True)
    assert [len(item.codes) for item in items] == sizes
    assert items[-1].codes.shape == (sizes[-1], GROUPS)
    assert [item.finish_reason for item in items] == [None] * (len(items) - 1) + ["stop"]


def test_an_item_is_whole_with_the_frame_that_fills_it() -> None:
    held = FramesHeld(SCHEDULE, GROUPS)
    lanes = np.array([held.open(0)])
    assert held.add(lanes, frame(0)) == [0]
    held.take(int(lanes[0]))
    assert held.add(lanes, frame(1)) == []
    assert held.add(lanes, frame(2)) == [0]


@pytest.mark.parametrize("sizes", [(1,), (1, 3, 8), (2, 5)])
def test_streams_that_come_and_go_keep_their_frames_apart(sizes: tuple[int, ...]) -> None:
    chance, numbers = random.Random(1), iter(range(10**6))
    held = FramesHeld(sizes, GROUPS, lanes=2)
    # By lane: the frames of the next item, the number of its first one, and the sizes planned.
    waiting: dict[int, list[np.ndarray]] = {}
    firsts: dict[int, int] = {}
    planned: dict[int, list[int]] = {}
    items = 0

    def check(item: CodecFrames, lane: int, reason: FinishReason | None) -> None:
        frames, waiting[lane] = waiting[lane], []
        np.testing.assert_array_equal(item.codes, np.reshape(frames, (-1, GROUPS)))
        assert item.codes.shape == (len(frames), GROUPS)
        assert (item.first_frame, item.finish_reason) == (firsts[lane], reason)
        firsts[lane] += len(frames)

    for _ in range(STEPS):
        while len(waiting) < STREAMS and chance.random() < 0.5:
            first = chance.choice((0, 0, 9))
            lane = held.open(first)
            assert lane not in waiting
            waiting[lane], firsts[lane] = [], first
            planned[lane] = [*sizes, *[sizes[-1]] * STEPS]
        moving = [lane for lane in waiting if chance.random() < 0.8]
        codes = np.array([[next(numbers)] * GROUPS for _ in moving]).reshape(-1, GROUPS)
        whole = held.add(np.array(moving, np.int64), codes)
        for place, lane in enumerate(moving):
            waiting[lane].append(codes[place])
            assert (len(waiting[lane]) == planned[lane][0]) == (place in whole)
            if place in whole:
                items += 1
                planned[lane].pop(0)
                check(held.take(lane), lane, None)
        for lane in [lane for lane in waiting if chance.random() < 0.05]:
            check(held.take(lane, "stop"), lane, "stop")
            held.close(lane)
            del waiting[lane]
    assert items > STEPS / 2
