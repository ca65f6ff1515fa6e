"""Streams that lose what makes them, at either hop: codec frames and samples."""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from serve_app import resumption
from serve_app.errors import (
    InvalidRequest,
    Overloaded,
    RepeatedFailure,
    StageFailed,
    StageLost,
    StageUnavailable,
)
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_codes
from serve_app.pipeline import synthesize
from serve_app.resumption import Policy, resumed
from serve_app.types import InputTokens, NamedVoice, SpeechRequest

REQUEST = SpeechRequest("r", "m", "Hello.", NamedVoice("vivian"), "auto", seed=7)
NUM_FRAMES = 200
HANG = "hang"
LOST = StageUnavailable("gone")


class Replicas:
    """Calls that fail as told, one after the other: (frame, error), at once where they begin
    behind that frame. The last ones are whole.

    Time passes in pauses only, unless a call hangs.
    """

    def __init__(self, *failures, num_frames=NUM_FRAMES, chunk_frames=(1, 2, 4), **policy):
        self.failures = list(failures)
        self.num_frames = num_frames
        self.chunk_frames = chunk_frames
        self.done, self.pauses, self.now_s = [], [], 0.0
        self.talkers, self.observed = [], []
        self.decoder = FakeSpeechDecoder()
        limits = {"first_s": 5.0, "gap_s": 5.0, "deadline_s": 60.0, **policy}
        self.policy = Policy(**limits)

    def talker(self, done):
        self.done.append(0 if done is None else len(done))
        fail_at, error = self.failures.pop(0) if self.failures else (None, None)
        if fail_at is not None:
            fail_at = max(fail_at, self.done[-1])
        calls = 0

        async def sleep(_):
            nonlocal calls
            calls += 1
            if error is HANG and self.done[-1] + calls > fail_at:
                await asyncio.get_running_loop().create_future()

        self.talkers.append(
            FakeTalker(
                self.num_frames,
                chunk_frames=self.chunk_frames,
                sleep=sleep,
                fail_at=fail_at,
                error=None if error is HANG else error,
            )
        )
        return self.talkers[-1]

    def frames(self, request, done):
        return self.talker(done).frames(request, done)

    def chunks(self, request, done):
        return synthesize(self.talker(done), self.decoder, request, done)

    async def pause(self, seconds):
        self.pauses.append(seconds)
        self.now_s += seconds

    def observe(self, outcome, silent_s):
        self.observed.append((outcome, silent_s))

    def run(self, call=None, done=None, request=REQUEST):
        """The items of one stream, and what ended it."""
        stream = resumed(
            call or self.chunks,
            self.policy,
            self.observe,
            sleep=self.pause,
            clock=lambda: self.now_s,
        )
        items = []

        async def main():
            async with aclosing(stream(request, done)) as received:
                async for item in received:
                    items.append(item)

        try:
            asyncio.run(main())
        except Exception as error:
            return items, error
        finally:
            assert sum(talker.running for talker in self.talkers) == self.decoder.streams == 0
        return items, None


def codes(num_frames=NUM_FRAMES, first=0):
    return np.concatenate([fake_codes(REQUEST.seed, frame) for frame in range(first, num_frames)])


def assert_whole(items, first=0):
    np.testing.assert_array_equal(
        np.concatenate([item.codes for item in items]), codes(first=first)
    )
    assert [item.finish_reason for item in items if item.finish_reason] == ["stop"]


@pytest.mark.parametrize(
    "error", [LOST, StageLost("died"), StageFailed("engine"), HANG], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("hop", ["frames", "chunks"])
@pytest.mark.parametrize("fail_at", [0, 1, 100])
def test_any_loss_is_made_good_at_either_hop(error, hop, fail_at):
    replicas = Replicas((fail_at, error), first_s=0.05, gap_s=0.05)
    items, error = replicas.run(getattr(replicas, hop))
    assert error is None
    assert_whole(items)
    assert len(replicas.done) == 2
    # Read twice, but asked for once.
    assert [item.tokens for item in items if item.tokens] == [InputTokens(text=1)]


def test_the_samples_of_a_resumed_stream_are_the_ones_of_one_that_was_not():
    replicas = Replicas((5, LOST), (30, LOST), (90, LOST))
    items, _ = replicas.run()
    samples = np.concatenate([item.samples for item in items])
    np.testing.assert_array_equal(samples, FakeSpeechDecoder().decode(codes()))
    ends = np.cumsum([len(item.samples) for item in items])
    assert [item.first_sample for item in items] == [0, *ends[:-1]]


def test_what_a_caller_has_already_is_not_made_again():
    replicas = Replicas((20, LOST))
    items, _ = replicas.run(replicas.frames, done=codes(10))
    assert_whole(items, first=10)
    assert replicas.done == [10, 17]


def test_any_number_of_losses_is_made_good_while_each_attempt_brings_something():
    losses = [(frame, LOST) for frame in range(10, 190, 9)]
    replicas = Replicas(*losses)
    items, _ = replicas.run()
    assert_whole(items)
    assert set(replicas.pauses) == {replicas.policy.pause_s}


def test_attempts_that_bring_nothing_are_counted_and_come_at_growing_intervals():
    replicas = Replicas(*[(3, LOST)] * 9, max_attempts=5, pause_s=1.0, max_pause_s=3.0)
    items, error = replicas.run()
    assert error is LOST
    assert len(items) == 2
    # The first attempt brought something, but nothing after it counts until the next item.
    assert replicas.done == [0, 3, 3, 3, 3]
    assert replicas.pauses == [1.0, 2.0, 3.0, 3.0]


def test_a_stream_that_stays_silent_for_too_long_is_given_up():
    replicas = Replicas(*[(3, LOST)] * 99, max_attempts=99, pause_s=1.0, deadline_s=10.0)
    _, error = replicas.run()
    assert error is LOST
    assert sum(replicas.pauses) == 1 + 2 + 3 + 3


def test_the_time_of_silence_begins_anew_with_each_item():
    losses = [(frame, LOST) for frame in range(10, 190, 9)]
    replicas = Replicas(*losses, pause_s=3.0, deadline_s=4.0)
    items, error = replicas.run()
    assert error is None
    assert_whole(items)
    assert sum(replicas.pauses) == 60


def test_a_full_server_is_an_answer_before_the_first_audio():
    replicas = Replicas((0, Overloaded("full")))
    items, error = replicas.run()
    assert isinstance(error, Overloaded)
    assert (items, replicas.done) == ([], [0])


def test_a_survivor_without_a_free_slot_is_waited_for_after_it():
    full = [(0, Overloaded("full"))] * 12
    replicas = Replicas((50, LOST), *full, max_attempts=3)
    items, error = replicas.run()
    assert error is None
    assert_whole(items)
    assert len(replicas.done) == 14
    assert max(replicas.pauses) == replicas.policy.max_pause_s


def test_a_full_server_is_waited_for_where_the_piece_before_is_heard():
    replicas = Replicas(*[(0, Overloaded("full"))] * 3)
    items, error = replicas.run(request=replace(REQUEST, ahead_s=0.0))
    assert error is None
    assert_whole(items)
    assert len(replicas.pauses) == 3


def test_waiting_for_a_free_slot_has_an_end():
    replicas = Replicas((50, LOST), *[(0, Overloaded("full"))] * 99, deadline_s=20.0)
    _, error = replicas.run()
    assert isinstance(error, Overloaded)
    assert 15 < replicas.now_s <= 20


@pytest.mark.parametrize("kind", [StageLost, StageFailed])
def test_a_request_that_breaks_two_replicas_is_not_tried_at_a_third(kind):
    replicas = Replicas(*[(30, kind("died"))] * 9)
    items, error = replicas.run()
    assert isinstance(error, RepeatedFailure)
    assert len(replicas.done) == 2
    assert len(items) > 5


def test_nobody_tries_a_request_again_that_was_given_up_behind():
    replicas = Replicas((30, RepeatedFailure("2 replicas broke")))
    _, error = replicas.run()
    assert isinstance(error, RepeatedFailure)
    assert len(replicas.done) == 1


def test_replicas_that_break_far_apart_are_no_reason_to_give_up():
    replicas = Replicas(*[(frame, StageLost("died")) for frame in (10, 90, 180)])
    items, error = replicas.run()
    assert error is None
    assert_whole(items)


def test_each_loss_is_told_once_with_the_time_it_left_without_audio():
    full = Overloaded("full")
    replicas = Replicas((7, LOST), (7, full), (7, LOST), (90, LOST), pause_s=1.0, max_pause_s=9.0)
    _, error = replicas.run()
    assert error is None
    # The first one took three attempts.
    assert replicas.observed == [("resumed", 1.0 + 2.0 + 4.0), ("resumed", 1.0)]


def test_the_log_has_each_loss_and_when_the_stream_went_on(caplog):
    caplog.set_level(logging.INFO, resumption.logger.name)
    replicas = Replicas((7, LOST), (7, LOST), pause_s=1.0, max_pause_s=9.0)
    _, error = replicas.run()
    assert error is None
    assert caplog.messages == [
        "r: lost after 7 frames, going on in 1.0 s: gone",
        "r: lost after 7 frames, going on in 2.0 s: gone",
        "r: goes on after 3.00 s",
    ]


@pytest.mark.parametrize("lasts_s", [2.0, 60.0])
def test_a_stream_that_is_given_up_is_told_as_lost(lasts_s):
    losses = [(7, LOST)] * 9
    replicas = Replicas(*losses, max_attempts=4, pause_s=1.0, max_pause_s=1.0, deadline_s=lasts_s)
    _, error = replicas.run()
    assert error is LOST
    assert replicas.observed == [("lost", min(lasts_s, 3.0))]


@pytest.mark.parametrize("error", [Overloaded("full"), InvalidRequest("too long")])
def test_what_is_refused_at_once_was_not_lost(error):
    replicas = Replicas((0, error))
    assert replicas.run() == ([], error)
    assert replicas.observed == []
    replicas = Replicas((0, LOST), (0, Overloaded("full")), pause_s=1.0)
    assert replicas.run()[0] == []
    assert replicas.observed == [("lost", 1.0)]


def test_a_bad_request_is_not_tried_again():
    replicas = Replicas((0, InvalidRequest("too long")))
    _, error = replicas.run()
    assert isinstance(error, InvalidRequest)
    assert len(replicas.done) == 1


def test_a_loss_after_the_end_is_none():
    class Late(Replicas):
        async def frames(self, request, done):
            async for item in super().frames(request, done):
                yield item
            raise LOST

    replicas = Late()
    items, error = replicas.run(replicas.frames)
    assert error is None
    assert_whole(items)
    assert len(replicas.done) == 1


def test_a_slow_consumer_uses_up_no_deadline():
    async def main():
        replicas = Replicas(num_frames=3, chunk_frames=(1,), first_s=0.05, gap_s=0.05)
        stream = resumed(replicas.frames, replicas.policy)
        seen = 0
        async with aclosing(stream(REQUEST)) as items:
            async for _ in items:
                await asyncio.sleep(0.08)
                seen += 1
        assert (seen, len(replicas.done)) == (3, 1)

    asyncio.run(main())


def test_closing_a_stream_closes_the_attempt():
    async def main():
        replicas = Replicas()
        stream = resumed(replicas.chunks, replicas.policy)(REQUEST)
        await anext(stream)
        await stream.aclose()
        assert replicas.talkers[0].running == replicas.decoder.streams == 0

    asyncio.run(main())
