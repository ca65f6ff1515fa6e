"""What a replica says of its streams."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest

from serve_app.scaling.board import Board


@dataclass
class Item:
    codes: list[int]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def speak(
    board: Board, clock: Clock, steps: list[tuple[float, int]], *, resumed: bool = False
) -> None:
    """A stream whose items of so many frames take so many seconds each."""

    async def items() -> AsyncGenerator[Item, None]:
        for seconds, frames in steps:
            clock.now_s += seconds
            yield Item([0] * frames)

    async def listen() -> None:
        async for _ in board.noted(items(), resumed=resumed):
            pass

    asyncio.run(listen())


def test_a_replica_without_streams_says_only_what_it_carries() -> None:
    assert Board(64, Clock()).report() == {"capacity": 64.0, "arrivals_per_s": 0.0}


def test_a_stream_is_an_arrival_with_a_first_audio_and_a_slack() -> None:
    clock = Clock()
    board = Board(64, clock)
    # Four frames are 0.32 s of audio, sixteen 1.28: the last comes 1.0 s after the first.
    speak(board, clock, [(0.2, 4), (0.5, 12), (0.5, 12)])
    report = board.report()
    assert report["arrivals_per_s"] == pytest.approx(0.1)
    assert report["first_audio_p95_s"] == pytest.approx(0.2)
    assert report["slack_p05_s"] == pytest.approx(1.28 - 1.0)
    assert report["service_s"] == pytest.approx(1.2)


def test_a_stream_that_is_resumed_is_no_arrival() -> None:
    clock = Clock()
    board = Board(64, clock)
    speak(board, clock, [(3.0, 12)], resumed=True)
    report = board.report()
    assert report["arrivals_per_s"] == 0.0
    assert "first_audio_p95_s" not in report


def test_what_was_ten_seconds_ago_is_forgotten() -> None:
    clock = Clock()
    board = Board(64, clock)
    speak(board, clock, [(2.0, 12), (0.1, 12)])
    clock.now_s += 11.0
    assert "first_audio_p95_s" not in board.report()
    assert board.report()["arrivals_per_s"] == 0.0


def test_nothing_piles_up_where_nobody_asks_for_the_report() -> None:
    """As Serve does not, of a deployment whose number of replicas is fixed."""
    clock = Clock()
    board = Board(64, clock)
    for _ in range(50):
        speak(board, clock, [(0.5, 12)] * 20)
    kept = [len(values) for values in vars(board).values() if isinstance(values, deque)]
    assert 0 < max(kept) <= 21
