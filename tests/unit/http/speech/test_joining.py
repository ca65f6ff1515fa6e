import asyncio
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from serve_app.errors import StageFailed
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_codes
from serve_app.http.speech.joining import Listener, speak_unit, speak_units
from serve_app.pipeline import join, synthesize
from serve_app.text.script import Unit
from serve_app.types import ClonedVoice, InputTokens, NamedVoice, PcmChunk, SpeechRequest

RATE_HZ = 24000
FRAMES = 6
FADE = 120
REQUEST = SpeechRequest("id", "m", "all of it", NamedVoice("v"), "auto", 5)
ONE = FakeSpeechDecoder().decode(np.concatenate([fake_codes(5, frame) for frame in range(FRAMES)]))


class Stages:
    def __init__(self, **talker):
        self.talker = FakeTalker(**{"num_frames": FRAMES, "chunk_frames": (1, 2), **talker})
        self.decoder = FakeSpeechDecoder()

    def speak(self, request):
        return synthesize(self.talker, self.decoder, request)

    @property
    def idle(self):
        return (self.talker.running, self.decoder.streams) == (0, 0)


async def collect(stages, units, request=REQUEST):
    async with aclosing(speak_units(stages.speak, request, units, RATE_HZ)) as chunks:
        return [chunk async for chunk in chunks]


def spoken(units, request=REQUEST, **talker):
    stages = Stages(**talker)
    chunks = asyncio.run(collect(stages, units, request))
    assert stages.idle
    assert [chunk.first_sample for chunk in chunks] == [
        sum(len(before.samples) for before in chunks[:i]) for i in range(len(chunks))
    ]
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    return np.concatenate([chunk.samples for chunk in chunks]), chunks[-1].finish_reason, stages


def test_one_plain_unit_is_the_stream_as_it_is():
    samples, reason, stages = spoken((Unit("Hello."),))
    np.testing.assert_array_equal(samples, ONE)
    assert reason == "stop"
    (request,) = stages.talker.requests
    assert (request.text, request.request_id) == ("Hello.", "id")


def test_units_follow_each_other_with_their_pauses_and_no_sample_is_missing():
    units = (Unit("One.", pause_after_s=0.15), Unit("Two.", 1.0, 0.1, 0.2), Unit("Three."))
    samples, reason, stages = spoken(units)
    assert [request.text for request in stages.talker.requests] == ["One.", "Two.", "Three."]
    assert [request.request_id for request in stages.talker.requests] == ["id", "id.1", "id.2"]
    assert {request.seed for request in stages.talker.requests} == {5}
    pause = [round(0.25 * RATE_HZ), round(0.2 * RATE_HZ)]
    assert len(samples) == 3 * len(ONE) + sum(pause)
    assert reason == "stop"
    start = 0
    for position, silence in enumerate([*pause, 0]):
        part = samples[start : start + len(ONE)]
        inner = slice(FADE if position else 0, len(ONE) - (FADE if position < 2 else 0))
        np.testing.assert_array_equal(part[inner], ONE[inner])
        assert not samples[start + len(ONE) : start + len(ONE) + silence].any()
        start += len(ONE) + silence


def test_a_unit_is_asked_for_with_what_is_left_to_hear_of_those_before():
    _, _, stages = spoken((Unit("One.", pause_after_s=0.15), Unit("Two."), Unit("Three.")))
    first, second, third = (request.ahead_s for request in stages.talker.requests)
    one_s = FRAMES * 1920 / RATE_HZ
    assert first is None
    assert 0 < second <= one_s
    assert 0 < third <= 2 * one_s + 0.15


def test_a_listener_plays_what_is_sent_and_waits_for_more():
    now_s = 10.0
    listener = Listener(RATE_HZ, lambda: now_s)
    assert listener.ahead_s(RATE_HZ) == 1.0
    listener.sent(RATE_HZ)
    listener.sent(RATE_HZ)
    now_s += 0.5
    assert listener.ahead_s(RATE_HZ // 2) == 2.0
    now_s += 60.0
    assert listener.ahead_s(0) == 0.0
    listener.sent(RATE_HZ)
    assert listener.ahead_s(0) == 1.0


def test_what_each_unit_read_is_counted_once():
    units = (Unit("One or two.", 1.0, 0.7), Unit("Three."))
    voice = ClonedVoice(np.zeros(8, np.float32), np.zeros((9, 4), np.int64), "Said before.")
    request = replace(REQUEST, voice=voice, instructions="Be slow.")
    chunks = asyncio.run(collect(Stages(), units, request))
    read = [chunk.tokens for chunk in chunks if chunk.tokens is not None]
    assert read == [InputTokens(3 + 2, 9), InputTokens(1 + 2, 9)]


def test_units_meet_without_a_step():
    loud = np.full(4000, 20000, np.int16)

    async def speak(request):
        yield PcmChunk(loud, 0, np.zeros((1, 4), np.int64))
        yield PcmChunk(loud[:50], 4000, np.zeros((1, 4), np.int64), "stop")

    async def main():
        units = (Unit("One."), Unit("Two."))
        return await join(speak_units(speak, REQUEST, units, RATE_HZ))

    samples = asyncio.run(main()).samples.astype(int)
    assert len(samples) == 2 * 4050
    assert samples[4049] == samples[4050] == 0
    assert np.abs(np.diff(samples)).max() < 200
    assert samples[0] == samples[-1] == 20000


def test_a_pause_before_everything_waits_for_the_audio_behind_it():
    units = (Unit("Hello.", pause_before_s=0.3, pause_after_s=0.1),)
    samples, _, _ = spoken(units)
    np.testing.assert_array_equal(samples, np.pad(ONE, (7200, 2400)))
    with pytest.raises(StageFailed):
        spoken(units, fail_at=0, error=StageFailed("broken"))


def test_a_unit_has_the_rate_that_its_text_asks_for():
    samples, _, _ = spoken((Unit("Slow.", 0.5), Unit("Normal.")))
    assert len(samples) == 3 * len(ONE)


def test_the_next_unit_is_begun_before_the_last_audio_is_handed_on():
    async def main():
        stages = Stages()
        units = (Unit("One."), Unit("Two."))
        async with aclosing(speak_units(stages.speak, REQUEST, units, RATE_HZ)) as chunks:
            frames = 0
            async for chunk in chunks:
                frames += len(chunk.codes)
                if frames == FRAMES:
                    break
            await asyncio.sleep(0)
            assert len(stages.talker.requests) == 2
        assert stages.idle

    asyncio.run(main())


@pytest.mark.parametrize("num_chunks", range(1, 9))
def test_leaving_anywhere_frees_everything(num_chunks):
    async def main():
        stages = Stages(frame_s=0.001)
        units = (Unit("One.", pause_after_s=1.2), Unit("Two.", 0.8))
        async with aclosing(speak_units(stages.speak, REQUEST, units, RATE_HZ)) as chunks:
            for _ in range(num_chunks):
                await anext(chunks)
        assert stages.idle

    asyncio.run(main())


@pytest.mark.parametrize(
    ("limit", "frames", "reason", "requests"),
    [(100, 12, "stop", 2), (9, 9, "length", 2), (6, 6, "length", 1), (4, 4, "length", 1)],
)
def test_a_limit_of_tokens_is_for_all_units_together(limit, frames, reason, requests):
    request = SpeechRequest("id", "m", "", NamedVoice("v"), "auto", 5, max_new_tokens=limit)
    samples, ended, stages = spoken((Unit("One."), Unit("Two.")), request)
    assert len(samples) == frames * 1920
    assert (ended, len(stages.talker.requests)) == (reason, requests)


def test_a_failure_in_a_later_unit_is_the_failure_of_the_stream():
    calls = 0

    async def speak(request):
        nonlocal calls
        calls += 1
        yield PcmChunk(ONE, 0, np.zeros((1, 4), np.int64), "stop")
        if calls == 2:
            raise StageFailed("broken")

    async def main():
        async for _ in speak_units(speak, REQUEST, (Unit("One."), Unit("Two.")), RATE_HZ):
            pass

    with pytest.raises(StageFailed):
        asyncio.run(main())


def test_a_unit_without_an_end_leaves_the_stream_without_one():
    async def speak(request):
        reason = "stop" if request.text == "One." else None
        yield PcmChunk(ONE, 0, np.zeros((1, 4), np.int64), reason)

    with pytest.raises(StageFailed, match="finish reason"):
        asyncio.run(join(speak_units(speak, REQUEST, (Unit("One."), Unit("Two.")), RATE_HZ)))


UNITS = (
    Unit("One.", 1.0, 0.2, 0.15),
    Unit("Two.", 1.3, 0.0, 0.05),
    Unit("Three.", 0.8, 0.1),
    Unit("Four.", pause_after_s=0.3),
)


def test_units_made_one_by_one_are_the_stream_sample_by_sample():
    async def parts():
        stages = Stages()
        calls = [speak_unit(stages.speak, REQUEST, UNITS, n, RATE_HZ) for n in range(len(UNITS))]
        return [await call for call in calls]

    made = asyncio.run(parts())
    samples, _, _ = spoken(UNITS)
    np.testing.assert_array_equal(np.concatenate([part for part, _ in made]), samples)
    assert [reason for _, reason in made] == ["stop"] * 4


@pytest.mark.parametrize(("least", "of_last"), [(None, None), (4, 0), (21, 3), (50, 32)])
def test_the_last_unit_makes_up_what_is_lacking_of_the_least_number_of_tokens(least, of_last):
    _, _, stages = spoken(UNITS, replace(REQUEST, min_new_tokens=least))
    asked = [request.min_new_tokens for request in stages.talker.requests]
    assert asked == [None, None, None, of_last]
