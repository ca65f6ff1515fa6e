import numpy as np
import pytest

from serve_app.chunking import Chunker

SCHEDULE = (1, 2, 4)
NO_FRAME = np.zeros((0, 2), np.int64)


def frame(number):
    return np.full((1, 2), number, np.int64)


def chunked(total, first=0, tail=False):
    """The items of a stream; with `tail` its end comes without a frame."""
    chunker = Chunker(SCHEDULE, first)
    items = [
        chunker.add(frame(first + n), "stop" if n == total - 1 and not tail else None)
        for n in range(total)
    ]
    if tail:
        items.append(chunker.add(NO_FRAME, "stop"))
    return [item for item in items if item is not None]


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("total", range(1, 25))
def test_every_frame_is_kept_in_order_and_items_follow_the_schedule(total, first):
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
def test_an_end_without_a_frame_closes_the_last_item_or_is_an_empty_one(total, sizes):
    items = chunked(total, tail=True)
    assert [len(item.codes) for item in items] == sizes
    assert items[-1].codes.shape == (sizes[-1], 2)
    assert [item.finish_reason for item in items] == [None] * (len(items) - 1) + ["stop"]


def test_an_item_is_returned_with_the_frame_that_fills_it():
    chunker = Chunker(SCHEDULE)
    assert chunker.add(frame(0)) is not None
    assert chunker.add(frame(1)) is None
    assert chunker.add(frame(2)) is not None


def test_samples_stay_with_their_frame():
    samples = np.arange(4, dtype=np.int16)
    chunker = Chunker(SCHEDULE)
    first = chunker.add(frame(0), samples=samples)
    assert first.samples is samples
    chunker.add(frame(1))
    assert chunker.add(frame(2)).samples is None
