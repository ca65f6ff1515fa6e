"""What deployments record of streams, with a recorder that remembers."""

import asyncio
import math
import pickle
from bisect import bisect_left
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

from serve_app import metrics
from serve_app.deployments.recorded import StageStats, load_of, of_hop, recorded, recorded_session
from serve_app.errors import Overloaded, StageFailed
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_codes
from serve_app.models.step_times import StepTimes
from serve_app.pipeline import synthesize
from serve_app.types import SpeechRequest, Stage

FULL = "all seats are taken"


class Remembers:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self.observed: list[tuple[str, float, str]] = []

    def count(self, metric: metrics.Metric, **labels: str) -> None:
        assert tuple(labels) == metric.labels
        self.counts[":".join((metric.name, *labels.values()))] += 1

    def add(self, metric: metrics.Metric, amount: float, **labels: str) -> None:
        assert tuple(labels) == metric.labels
        if amount > 0:
            self.counts[":".join((metric.name, *labels.values()))] += amount

    def set(self, metric: metrics.Metric, value: float, **labels: str) -> None:
        assert metric.is_gauge
        self.gauges[":".join((metric.name, *labels.values()))] = value

    def observe(self, metric: metrics.Metric, value: float, **labels: str) -> None:
        assert tuple(labels) == metric.labels
        self.observed.append((metric.name, value, *labels.values()))


def counted(
    talker: FakeTalker,
    *stages: Stage,
    max_new_tokens: int | None = None,
    done: np.ndarray | None = None,
) -> tuple[Counter[str], int]:
    """What is counted of one stream, and how many frames came through."""
    request = SpeechRequest("r", "m", "Hello.", "vivian", "auto", 7, max_new_tokens=max_new_tokens)
    recorder = Remembers()

    async def run() -> int:
        chunks = synthesize(talker, FakeSpeechDecoder(), request, done)
        chunks = recorded(chunks, request, done, recorder, *stages)
        return sum([len(chunk.codes) async for chunk in chunks])

    try:
        return recorder.counts, asyncio.run(run())
    except Overloaded:
        return recorder.counts, 0
    finally:
        assert talker.running == 0


class CutTalker(FakeTalker):
    """One that has no room for more than three frames."""

    async def frames(self, request, done=None):
        async for item in super().frames(request, done):
            is_last = item.first_frame == 2
            yield type(item)(item.codes, item.first_frame, "length" if is_last else None)
            if is_last:
                return


def test_speech_that_the_server_cuts_is_counted_where_it_is_made() -> None:
    assert counted(CutTalker(), "talker") == ({"tts_speech_cut_total": 1}, 3)
    assert counted(CutTalker(), "speech_decoder") == ({}, 3)
    done = np.concatenate([fake_codes(7, frame) for frame in range(2)])
    assert counted(CutTalker(), "talker", max_new_tokens=4, done=done)[0].total() == 1


def test_speech_that_ends_where_its_client_said_or_by_itself_is_not_cut() -> None:
    assert counted(FakeTalker(), "talker", max_new_tokens=5) == ({}, 5)
    done = np.concatenate([fake_codes(7, frame) for frame in range(2)])
    assert counted(FakeTalker(), "talker", max_new_tokens=5, done=done) == ({}, 3)
    assert counted(FakeTalker(), "talker") == ({}, 10)


@pytest.mark.parametrize(
    ("refused_by", "expected"),
    [("talker", 0), ("speech_decoder", 1), (None, 0)],
)
def test_a_refusal_is_counted_by_the_stage_that_had_no_room(
    refused_by: Stage | None, expected: int
) -> None:
    error = pickle.loads(pickle.dumps(Overloaded(FULL, stage=refused_by)))
    counts, _ = counted(FakeTalker(fail_at=0, error=error), "speech_decoder")
    assert counts["tts_stage_refused_total:speech_decoder"] == counts.total() == expected
    # In one process, whichever it is.
    counts, _ = counted(FakeTalker(fail_at=0, error=error), "talker", "speech_decoder")
    assert counts[f"tts_stage_refused_total:{refused_by}"] == (refused_by is not None)


def test_a_hop_counts_its_losses_and_measures_the_silence_of_those_made_good() -> None:
    recorder = Remembers()
    observe = of_hop(recorder, "ingress")
    observe("resumed", 1.5)
    observe("lost", 20.0)
    assert recorder.counts == {
        "tts_streams_resumed_total:ingress": 1,
        "tts_streams_lost_total:ingress": 1,
    }
    assert recorder.observed == [("tts_stream_silence_seconds", 1.5, "ingress")]


@pytest.mark.parametrize(
    ("error", "end"),
    [(None, "over"), (StageFailed("broken"), "failed"), (asyncio.CancelledError(), "left")],
    ids=["over", "failed", "left"],
)
def test_a_session_is_counted_by_how_it_ends(error: BaseException | None, end: str) -> None:
    recorder = Remembers()
    with suppress(StageFailed, asyncio.CancelledError), recorded_session(recorder):
        if error is not None:
            raise error
    assert recorder.counts == {f"tts_predictor_sessions_total:{end}": 1}


def test_what_a_stage_says_of_itself_is_counted_once_and_its_load_is_shown() -> None:
    recorder = Remembers()
    stats = StageStats(recorder, "talker")
    for late, steps in ((0, 0), (2, 5), (2, 5), (3, 9)):
        work = {"steps": steps, "prompt_tokens": 10 * steps}
        stats.note({"late_kernels": late, **work, "running": late, "kv_cache_usage": 0.5})
    assert recorder.counts == {
        "tts_kernels_compiled_late_total:talker": 3,
        "tts_stage_steps_total:talker": 9,
        "tts_prompt_tokens_total": 90,
    }
    assert recorder.gauges == {
        "tts_requests_waiting:talker": 0,
        "tts_requests_running:talker": 3,
        "tts_kv_cache_usage_ratio": 0.5,
    }


def test_each_step_is_observed_once_in_its_bucket_and_the_sum_is_that_of_the_steps() -> None:
    recorder, times = Remembers(), StepTimes()
    stats = StageStats(recorder, "talker")
    bounds = metrics.STAGE_STEP.buckets
    # At and right beyond a bound, within a bucket, and longer than the last one.
    durations = [0.001, 0.0010001, 0.0042, 0.0047, 0.0047, 7.0, 0.0]
    for part in (durations[:4], durations[4:], []):
        for seconds in part:
            times.note(seconds)
        told = {"steps": 1.0, **times.stats()}
        assert load_of(told) == {"steps": 1.0}
        stats.note_work(told)
    observed = [value for name, value, *_ in recorder.observed if name == metrics.STAGE_STEP.name]
    assert len(observed) == len(durations)
    assert math.isclose(sum(observed), sum(durations))
    assert math.isclose(times.total_s, sum(durations))
    places = [sorted(bisect_left(bounds, s) for s in seconds) for seconds in (observed, durations)]
    assert places[0] == places[1]


def test_the_work_of_a_stage_beside_another_is_counted_without_its_load() -> None:
    recorder = Remembers()
    StageStats(recorder, "speech_decoder").note_work({"steps": 3, "frames": 12, "streams": 5})
    assert recorder.counts == {
        "tts_stage_steps_total:speech_decoder": 3,
        "tts_stage_frames_total:speech_decoder": 12,
    }
    assert recorder.gauges == {}
