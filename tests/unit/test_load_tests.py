"""Load tests: figures with answers known beforehand."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from load_tests import report
from load_tests.__main__ import frames_of
from load_tests.client import AudibleScan, AudioShape, RequestResult
from load_tests.metrics import percentile, play, summarize
from load_tests.report import Level
from load_tests.runner import ClosedLoop, OpenLoop, Run
from load_tests.serve_bench import CONFIGS, configured
from load_tests.workload import Workload, poisson_arrivals
from serve_app.config import AppConfig
from serve_app.deployments.speech_body import SpeechBody, parse
from serve_app.serve_config import find_problems

SHAPE = AudioShape()
FRAME_BYTES = 3840
FRAME_S = 0.08


def at(*arrivals: tuple[float, int]) -> list[tuple[float, int]]:
    """(seconds, frames in all) as arrivals."""
    return [(at_s, frames * FRAME_BYTES) for at_s, frames in arrivals]


def result(**changes: Any) -> RequestResult:
    fields: dict[str, Any] = {
        "index": 0,
        "scheduled_at_s": 100.0,
        "sent_at_s": 100.0,
        "end_s": 1.0,
        "status": 200,
        "arrivals": tuple(at((0.1, 1), (0.5, 25))),
        "shape": SHAPE,
        "expected_samples": 25 * 1920,
        "first_audible_sample": 0,
    }
    return RequestResult(**{**fields, **changes})


# Playback


def test_audio_that_is_always_there_in_time_plays_without_a_stall() -> None:
    # The second frame comes when the first has just ended.
    playback = play(at((0.5, 1), (0.58, 2), (0.6, 10)), SHAPE)
    assert (playback.underrun_s, playback.longest_stall_s, playback.num_stalls) == (0, 0, 0)


def test_the_player_starts_at_the_first_whole_frame() -> None:
    arrivals = [(0.1, FRAME_BYTES - 2), (1.0, FRAME_BYTES), (1.08, 2 * FRAME_BYTES)]
    assert play(arrivals, SHAPE).underrun_s == 0


def test_stalls_add_up() -> None:
    # Dry at 0.08, waits until 0.18; then two frames, dry at 0.34, waits until 0.37.
    playback = play(at((0.0, 1), (0.18, 3), (0.37, 9)), SHAPE)
    assert playback.underrun_s == pytest.approx(0.13)
    assert playback.longest_stall_s == pytest.approx(0.10)
    assert playback.num_stalls == 2


def test_the_underrun_is_the_worst_deficit_of_a_player_that_never_waits() -> None:
    arrivals = at((0.2, 1), (0.31, 2), (0.5, 4), (0.51, 5), (0.9, 9), (1.5, 20))
    before = 0
    deficits = []
    for at_s, total in arrivals:
        deficits.append(at_s - 0.2 - before / FRAME_BYTES * FRAME_S)
        before = total
    assert play(arrivals, SHAPE).underrun_s == pytest.approx(max(deficits))


def test_the_header_of_a_file_is_not_audio() -> None:
    shape = AudioShape(header_bytes=44)
    arrivals = [(0.0, FRAME_BYTES), (0.05, 44 + FRAME_BYTES), (0.15, 44 + 2 * FRAME_BYTES)]
    assert play(arrivals, shape).underrun_s == pytest.approx(0.02)


# Percentiles and summaries


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


# Workload


def test_poisson_arrivals_depend_on_the_seed_alone() -> None:
    assert poisson_arrivals(20, 10, seed=1) == poisson_arrivals(20, 10, seed=1)
    assert poisson_arrivals(20, 10, seed=1) != poisson_arrivals(20, 10, seed=2)
    # A longer schedule begins with the shorter one.
    short = poisson_arrivals(20, 5, seed=1)
    assert poisson_arrivals(20, 10, seed=1)[: len(short)] == short


def test_poisson_arrivals_have_the_rate_and_the_scatter() -> None:
    arrivals = poisson_arrivals(50, 1000, seed=3)
    # 50,000 expected, standard deviation 224.
    assert abs(len(arrivals) - 50_000) < 1000
    gaps = [after - before for before, after in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 50, rel=0.02)
    assert spread == pytest.approx(mean, rel=0.02)  # of exponential gaps
    assert min(gaps) >= 0


def test_a_rate_is_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        poisson_arrivals(0, 1, seed=0)


def test_a_call_is_a_body_that_the_server_reads_as_meant() -> None:
    call = Workload(min_frames=30, max_frames=80, seed=4).call(5)
    body = parse(call.body)
    assert isinstance(body, SpeechBody)
    assert call == Workload(min_frames=30, max_frames=80, seed=4).call(5)
    assert call.body != Workload(min_frames=30, max_frames=80, seed=5).call(5).body
    assert call.num_frames is not None
    assert 30 <= call.num_frames <= 80
    assert body.min_new_tokens == body.max_new_tokens == call.num_frames
    assert body.non_streaming_mode is False
    assert body.response_format == "pcm"
    assert not set(json.loads(call.body)) - set(SpeechBody.model_fields)


def test_a_share_shortens_a_call_and_a_natural_length_is_not_forced() -> None:
    assert Workload(min_frames=40, max_frames=40).call(0, share=0.25).num_frames == 10
    assert Workload(min_frames=40, max_frames=40).call(0, share=0.001).num_frames == 1
    natural = Workload(min_frames=None, max_frames=None).call(0)
    assert natural.num_frames is None
    assert "max_new_tokens" not in json.loads(natural.body)


def test_frames_may_be_a_number_a_range_or_the_models_choice() -> None:
    assert frames_of("55") == (55, 55)
    assert frames_of("30:80") == (30, 80)
    assert frames_of("natural") == (None, None)


# Report


def test_a_report_says_what_failed_and_json_has_no_infinity(tmp_path: Path) -> None:
    run = Run(OpenLoop(5, 1), window=(100.0, 101.0))
    run.results += [result(), result(error="status", status=429, detail="429: full", arrivals=())]
    level = Level.of(run)
    facts = {**report.environment("abc"), "health": {"config_digest": "0123", "placement": "split"}}
    text = report.markdown([level], facts)
    assert "| open, 5 requests/s | 2 | 1 | 100.0 / failed / failed |" in text
    assert "5 requests/s: 1 status; the first: 429: full" in text
    assert "commit abc, config 0123, placement split" in text
    out = tmp_path / "folder" / "out.json"
    report.write_json(out, {**facts, "levels": [level.as_json(requests=True)]})
    read = json.loads(out.read_text(), parse_constant=pytest.fail)
    (entry,) = read["levels"]
    assert entry["first_playable_s"] == {"p50": 0.1, "p95": None, "p99": None, "mean": None}
    assert [item["status"] for item in entry["results"]] == [200, 429]


# Configuration of the server under test


@pytest.mark.parametrize("placement", list(CONFIGS))
def test_overrides_reach_arguments_and_deployments(placement: str) -> None:
    overrides = [
        "code_predictor.batch_sizes=[1, 8]",
        "fused:talker.max_model_len=512",
        "deployments.Ingress.autoscaling_config.max_replicas=1",
    ]
    config = configured(placement, overrides, capacity=256)
    assert not list(find_problems(config))
    application = config["applications"][0]
    args = AppConfig.model_validate(application["args"])
    assert args.placement == placement
    assert args.talker.max_num_seqs == args.speech_decoder.max_streams == 256
    assert args.code_predictor.batch_sizes == (1, 8)
    assert args.talker.max_model_len == (512 if placement == "fused" else 4096)
    deployments = {entry["name"]: entry for entry in application["deployments"]}
    assert deployments["Ingress"]["autoscaling_config"]["max_replicas"] == 1
    assert deployments["Ingress"]["max_ongoing_requests"] == 512


@pytest.mark.parametrize("override", ["talker", "deployments.Nobody.max_ongoing_requests=3"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"KEY=VALUE|Nobody"):
        configured("fused", [override], None)
