"""Percentiles, and the figures of a run."""

import math

import pytest

from load_tests.loops.client import AudibleScan
from load_tests.loops.level import Level
from load_tests.loops.metrics import percentile, summarize
from load_tests.loops.runner import BurstLoop, ClosedLoop, OpenLoop, Run
from tests.unit.load_tests.values import (
    FRAME_S,
    result,
)


@pytest.mark.parametrize(
    ("values", "quantile", "expected"),
    [
        (range(1, 101), 0.5, 50),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        (range(1, 21), 0.95, 19),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([7.0], 0.99, 7.0),
        ([1.0, math.inf], 0.5, 1.0),
        ([1.0, math.inf], 0.95, math.inf),
    ],
)
def test_percentiles_are_values_of_the_sample(
    values: list[float], quantile: float, expected: float
) -> None:
    assert percentile(values, quantile) == expected


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 0.5))


def test_the_figures_of_a_run() -> None:
    run = Run(ClosedLoop(1, 2), window=(100.0, 102.0))
    run.results += [result(), result(index=1, sent_at_s=101.0, end_s=2.0)]
    figures = summarize(run)
    assert (figures.requests, figures.failures) == (2, 0)
    assert figures.first_playable_s.p50 == 0.1
    assert figures.rtf.p50 == pytest.approx(0.5)
    assert figures.rtf.p95 == pytest.approx(1.0)
    assert figures.audio_s == pytest.approx(4.0)
    assert figures.span_s == pytest.approx(3.0)
    assert figures.audio_s_per_s == pytest.approx(4 / 3)
    assert figures.audio_s_per_s_window == pytest.approx(2.0)
    assert figures.longest_gap_s.p99 == pytest.approx(0.4)
    assert (figures.underruns, figures.underruns_over_50_ms) == (2, 2)


def test_a_burst_that_was_late_shows_beside_those_that_were_not() -> None:
    run = Run(BurstLoop(size=2, times=3))
    late = result(arrivals=((0.9, 3840),))
    run.results += [result(), result(), late, result(), result(), result(error="status")]
    level = Level.of(run)
    assert (level.loop, level.load) == ("burst", "burst, 2 at once, 3 times")
    assert level.bursts_p95_s == [0.1, 0.9, math.inf]
    assert level.summary.audio_s_per_s_window is None
    first = Level.of(Run(BurstLoop(size=2, times=1, cold=True), results=[late, late]))
    assert (first.load, first.bursts_p95_s) == ("cold, 2 at once", [])


def test_only_audio_within_the_window_counts_there() -> None:
    run = Run(OpenLoop(1, 1), window=(100.3, 100.7))
    run.warm_up.append(result(sent_at_s=99.9))  # 24 of its frames at 100.4
    run.results.append(result(sent_at_s=100.4))  # 1 of its frames at 100.5
    assert summarize(run).audio_s_per_s_window == pytest.approx(25 * FRAME_S / 0.4)


def test_a_failed_request_is_infinitely_late_and_stays_in_the_sample() -> None:
    run = Run(ClosedLoop(1, 20), window=(100.0, 101.0))
    run.results += [result() for _ in range(18)]
    run.results += [result(error="truncated", detail="broken"), result(error="status", arrivals=())]
    figures = summarize(run)
    assert (figures.requests, figures.failures) == (20, 2)
    assert figures.failures_by_kind == {"truncated": 1, "status": 1}
    assert figures.first_detail == "broken"
    assert figures.first_playable_s.p50 == 0.1
    assert figures.first_playable_s.p95 == math.inf
    assert figures.rtf.p95 == math.inf


def test_first_playable_waits_for_a_whole_frame_and_audible_for_sound() -> None:
    arrivals = ((0.1, 2000), (0.2, 3839), (0.3, 3840), (0.4, 9000))
    seen = result(arrivals=arrivals, first_audible_sample=2000)
    assert (seen.first_byte_s, seen.first_playable_s, seen.first_audible_s) == (0.1, 0.3, 0.4)
    assert seen.leading_silence_s == pytest.approx(2000 / 24000)
    assert result(first_audible_sample=None).first_audible_s is None


def test_pieces_of_any_size_are_scanned_for_sound() -> None:
    silence, loud = (300).to_bytes(2, "little"), (-32768).to_bytes(2, "little", signed=True)
    body = b"RIFF" * 11 + silence * 5 + loud + silence * 3
    for size in (1, 3, 7, 100):
        scan = AudibleScan(header_bytes=44)
        for start in range(0, len(body), size):
            scan.feed(body[start : start + size])
        assert scan.first_sample == 5
    quiet = AudibleScan(header_bytes=0)
    quiet.feed(silence * 1000)
    assert quiet.first_sample is None
