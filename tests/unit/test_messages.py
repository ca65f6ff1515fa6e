"""What crosses the socket of `fused` arrives as it was sent, whole, in order and at any size."""

import asyncio
import socket
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from serve_app.errors import Overloaded
from serve_app.models.fused import messages
from serve_app.models.fused.process import _new_event_loop
from serve_app.types import InputTokens, NamedVoice, PcmChunk, SpeechRequest

GROUPS = 16


def chunk(frames: int, first_frame: int = 0, **others: Any) -> PcmChunk:
    random = np.random.default_rng(frames)
    samples = random.integers(-(2**15), 2**15, frames * 1920, dtype=np.int16)
    codes = random.integers(0, 2048, (frames, GROUPS))
    return PcmChunk(samples, first_frame * 1920, codes, **others)


async def passed(sent: list[Any]) -> list[Any]:
    """What comes out of a socket that `sent` was written to at once, then closed."""
    ours, theirs = [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
    for message in sent:
        messages.write(ours[1], message)
    found = [await messages.read(theirs[0]) for _ in sent]
    ours[1].close()
    with pytest.raises(EOFError):
        await messages.read(theirs[0])
    theirs[1].close()
    return found


def passing(sent: list[Any]) -> list[Any]:
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(passed(sent))


def assert_equal(found: PcmChunk, expected: PcmChunk) -> None:
    for field in fields(PcmChunk):
        value, right = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(right, np.ndarray):
            assert value.dtype == right.dtype
            np.testing.assert_array_equal(value, right)
        else:
            assert value == right


def test_chunks_arrive_as_they_were_sent() -> None:
    chunks = [
        chunk(1, timings=(("talker", 0.25), ("decode", 0.5)), tokens=InputTokens(3, 4)),
        *(chunk(16, 1 + 16 * number) for number in range(40)),  # more than a socket holds
        chunk(0, 641, finish_reason="stop"),
    ]
    found = passing([(number, "item", sent) for number, sent in enumerate(chunks)])
    assert [message[:2] for message in found] == [(n, "item") for n in range(len(chunks))]
    for (_, _, value), sent in zip(found, chunks, strict=True):
        assert_equal(value, sent)


def test_a_part_of_an_array_arrives_alone() -> None:
    whole = chunk(4)
    part = PcmChunk(whole.samples[::2], 0, whole.codes[:, ::2])
    ((_, _, found),) = passing([(1, "item", part)])
    assert_equal(found, part)


def test_other_values_pass_between_chunks() -> None:
    request = SpeechRequest("r", "tiny", "Hello.", NamedVoice("ryan"), "english", seed=1)
    error = Overloaded("full", 2.5, stage="talker")
    call, item, failure, end = passing(
        [
            (1, "speak", (request, chunk(3).codes)),
            (1, "item", chunk(2)),
            (1, "error", error),
            (2, "end", None),
        ]
    )
    assert call[:2] == (1, "speak")
    assert call[2][0] == request
    np.testing.assert_array_equal(call[2][1], chunk(3).codes)
    assert_equal(item[2], chunk(2))
    assert (str(failure[2]), failure[2].retry_after_s) == (str(error), 2.5)
    assert end == (2, "end", None)
