"""Load tests: figures with answers known beforehand."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from load_tests import bench, jobs
from load_tests.__main__ import frames_of, ladders_of
from load_tests.jobs import Job, Store, plan
from load_tests.loops.client import AudibleScan, AudioShape, RequestResult, server_timings
from load_tests.loops.metrics import percentile, play, summarize
from load_tests.loops.runner import ClosedLoop, OpenLoop, Run
from load_tests.loops.workload import Workload, poisson_arrivals
from load_tests.reports import report
from load_tests.reports.bench_report import compose
from load_tests.reports.frame_table import FrameRow, frame_table
from load_tests.reports.load_points import load_points
from load_tests.reports.report import Level
from load_tests.reports.results import Results
from load_tests.reports.targets import TARGETS, sustained_rate, target_table
from load_tests.servers.measured import Measured, resume
from load_tests.servers.settings import CONFIGS, configured
from load_tests.stages import floors
from load_tests.stages.floors import H200, Work
from serve_app import serve_config
from serve_app.config import AppConfig
from serve_app.http.speech.body import SpeechBody, parse
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.random_checkpoint.write import write_configuration
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


def test_server_timings_are_read_from_their_header() -> None:
    header = (
        "talker;dur=9.50, cache;desc=hit, stages;desc=all;dur=12, broken;dur=x, ingress;dur=14.25"
    )
    assert server_timings(header) == {"talker": 0.0095, "stages": 0.012, "ingress": 0.01425}
    assert server_timings("") == {}


def test_a_report_says_where_first_audio_spends_its_time() -> None:
    run = Run(OpenLoop(5, 1), window=(100.0, 101.0))
    run.results += [result(server_s={"stages": 0.08, "ingress": 0.09}), result(index=1)]
    text = "\n".join(report.way([Level.of(run)]))
    assert "| load | client | ingress | stages |" in text
    assert "| open, 5 requests/s | 100.0 | 90.0 | 80.0 |" in text
    silent = Run(OpenLoop(5, 1), window=(100.0, 101.0))
    silent.results.append(result())
    assert report.way([Level.of(silent)]) == []


# Configuration of the server under test


@pytest.mark.parametrize("placement", list(CONFIGS))
def test_overrides_reach_arguments_and_deployments(
    monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    monkeypatch.setattr(serve_config.os, "cpu_count", lambda: 16)
    overrides = [
        "code_predictor.batch_sizes=[1, 8]",
        "fused:talker.max_model_len=512",
        "deployments.Ingress.autoscaling_config.max_replicas=7",
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
    scaling = deployments["Ingress"]["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (6, 7)
    assert deployments["Ingress"]["max_ongoing_requests"] == 512


def test_a_profile_comes_with_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_config.os, "cpu_count", lambda: 16)
    (application,) = configured("fused", [], None, "throughput")["applications"]
    assert application["args"]["profile"] == "throughput"
    deployments = {entry["name"]: entry for entry in application["deployments"]}
    assert deployments["Ingress"]["autoscaling_config"]["min_replicas"] == 6
    assert deployments["Fused"]["max_ongoing_requests"] == 512


@pytest.mark.parametrize("override", ["talker", "deployments.Nobody.max_ongoing_requests=3"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"KEY=VALUE|Nobody"):
        configured("fused", [override], None)


# Floors, against figures worked out by hand from the released shapes


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("released")
    write_configuration(folder, size="1.7b", variant="custom_voice")
    return ModelSpec.from_dir(folder)


def test_a_talker_step_reads_its_weights_once_and_each_streams_keys_and_values(
    released: ModelSpec,
) -> None:
    # A layer: q 2048x2048, k and v 1024x2048, o 2048x2048, three of 6144x2048, four norms.
    layer = 2048 * (2048 + 2 * 1024 + 2048 + 3 * 6144) + 2 * 2048 + 2 * 128
    assert 28 * layer + 2048 == 1_409_410_048  # as counted in the released file
    head = 3072 * 2048
    position = 2 * 28 * 8 * 128 * 2
    alone = floors.talker_step(released.talker, 1, 0)
    assert alone.num_bytes == 2 * (1_409_410_048 + head)
    assert alone.num_flops == 2 * (28 * (layer - 2 * 2048 - 2 * 128) + head)
    many = floors.talker_step(released.talker, 64, 500)
    assert many.num_bytes - alone.num_bytes == 64 * 500 * position
    attention = 4 * 500 * 16 * 128 * 28
    assert many.num_flops == 64 * (alone.num_flops + attention)


def test_a_predictor_frame_reads_its_layers_and_one_head_in_each_of_15_passes(
    released: ModelSpec,
) -> None:
    layers, head, projection = 78_655_744, 2048 * 1024, 2048 * 1024 + 1024
    work = floors.predictor_frame(released.code_predictor, 1)
    assert work.num_bytes == 2 * (15 * (layers + head) + projection)
    matrices = layers - 5 * (2 * 1024 + 2 * 128) - 1024
    assert work.num_flops == 2 * (16 * matrices + 15 * head + projection)
    assert floors.predictor_frame(released.code_predictor, 64).num_bytes == work.num_bytes
    assert work.bytes_ms(H200) == pytest.approx(0.564, abs=5e-4)


def test_a_decoder_chunk_is_weights_once_and_five_gigaflop_per_frame(released: ModelSpec) -> None:
    spec = released.speech_decoder
    one, chunk = floors.decoder_chunk(spec, 1, 1), floors.decoder_chunk(spec, 64, 12)
    assert one.num_flops == pytest.approx(4.96e9, rel=1e-3)
    assert chunk.num_flops == pytest.approx(64 * 12 * one.num_flops)
    # All parameters of the decoder but codebooks and their projections, norms, biases and Snakes.
    weights = 114_323_137 - 8_945_664
    assert one.num_bytes == pytest.approx(2 * weights, rel=0.02)
    row = 2 * 8 * 16 * 64 * 2
    assert chunk.num_bytes - one.num_bytes == (
        (64 * (72 + 12) - (72 + 1)) * row + (64 * 12 - 1) * 1920 * 2
    )
    assert chunk.is_compute_bound(H200)


@pytest.mark.parametrize(("streams", "expected_ms"), [(1, 1.25), (64, 2.09), (256, 4.65)])
def test_the_floors_of_a_step_are_those_of_the_model_spec(
    released: ModelSpec, streams: int, expected_ms: float
) -> None:
    work = floors.talker_step(released.talker, streams, 500)
    work += floors.predictor_frame(released.code_predictor, streams)
    # The model's description counts the projection in each pass: 0.015 ms.
    assert work.bytes_ms(H200) == pytest.approx(expected_ms, abs=0.02)


def test_the_floor_is_the_larger_of_bytes_and_operations() -> None:
    device = floors.Device(bytes_per_s=1e12, flops_per_s=1e14)
    assert Work(2e9, 1e11).ms(device) == pytest.approx(2.0)
    assert Work(1e9, 3e11).ms(device) == pytest.approx(3.0)
    assert (Work(1e9, 3e11) * 0.5 + Work(4e9, 0)).ms(device) == pytest.approx(4.5)


# Several runs of one load


def level(loop: str, load: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A level as it stands in JSON: 20 / 30 ms, nothing failed, 100 audio-seconds per second."""
    times = {"p50": 0.02, "p95": 0.03, "p99": 0.04, "mean": 0.02}
    loop_plan: dict[str, Any] = {"streams": load, "requests": 20, "warm_up": 1, "max_s": 300.0}
    if loop == "open":
        loop_plan = {"rate_hz": load, "duration_s": 5.0, "warm_up_s": 2.0, "seed": seed}
    return {
        "loop": loop,
        "label": f"{load:g}",
        "plan": loop_plan,
        "requests": 10,
        "failures": 0,
        "underruns": 0,
        "underruns_over_50_ms": 0,
        "first_playable_s": times,
        "lag_s": times,
        "clock_error_s": times,
        "audio_s_per_s": 90.0,
        "audio_s_per_s_window": 100.0,
        "stopped": "",
        **changes,
    }


def late(p50_s: float | None, p95_s: float | None) -> dict[str, float | None]:
    return {"p50": p50_s, "p95": p95_s, "p99": None, "mean": None}


def test_runs_of_one_load_become_median_and_range() -> None:
    points = load_points(
        [
            level("closed", 64),
            level("open", 20, 0, first_playable_s=late(0.010, 0.5), underruns=2),
            level("open", 20, 1, first_playable_s=late(0.030, 0.1)),
            level("open", 20, 2, first_playable_s=late(0.011, None), failures=1),
        ]
    )
    closed, opened = points
    assert (closed.loop, closed.load, closed.audio_s_per_s.median) == ("closed", 64, 100.0)
    assert (opened.seeds, opened.requests) == ((0, 1, 2), 30)
    assert (opened.underruns, opened.failures) == (2, 1)
    assert opened.p50_ms.text() == "11.0 (10.0 to 30.0)"
    # A run whose p95 is a failed request is the worst of all.
    assert opened.p95_ms.text() == "500.0 (100.0 to failed)"


def test_the_sustained_rate_ends_at_the_first_load_that_any_seed_fails() -> None:
    def rate(*levels: dict[str, Any]) -> float | None:
        return sustained_rate(load_points(levels))

    good = [level("open", hz, seed) for hz in (5, 20, 60) for seed in (0, 1)]
    assert rate(*good) == 60
    assert rate(*good, level("open", 60, 2, first_playable_s=late(0.02, 0.101))) == 20
    assert rate(*good, level("open", 20, 2, underruns=1)) == 5
    assert rate(level("open", 5, failures=1)) == 0
    assert rate(level("closed", 1)) is None


# One frame


def frame_row(batch: int, whole_ms: float, decoded_share: float = 1.0) -> FrameRow:
    return FrameRow(
        batch=batch,
        context=400.4,
        context_whole=500.0,
        talker_ms=2.5,
        talker_floor_ms=1.5,
        predictor_ms=2.0,
        predictor_floor_ms=0.5,
        decoder_ms=1.0,
        decoder_floor_ms=0.4,
        first_chunk_ms=3.5,
        first_chunk_floor_ms=0.25,
        host_ms=0.1,
        step_ms=4.6,
        step_floor_ms=2.0,
        whole_ms=whole_ms,
        whole_floor_ms=2.2,
        decoded_share=decoded_share,
        compute_bound=["decoder"],
    )


def test_each_time_of_a_frame_stands_beside_its_floor() -> None:
    *_, kept_up, behind = frame_table([frame_row(64, 6.0), frame_row(256, 9.0, 0.8)]).splitlines()
    assert kept_up == (
        "| 64 | 2.50 (1.50) | 2.00 (0.50) | 1.00 (0.40 c) | 3.50 (0.25) | 0.10 | 4.60 (2.00)"
        " | 6.00 (2.20) |"
    )
    assert behind.endswith("| 9.00 (2.20), decodes 80% |")


# The benchmark: parts, their results, the report


def arguments(tmp_path: Path, *more: str) -> Any:
    places = ["--out", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "checkpoints")]
    return bench.parse([*places, *more])


def test_a_benchmark_has_a_job_for_each_part_size_and_placement(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--peers", str(tmp_path), "--seeds", "3", "4")
    names = [job.name for job in plan(args, jobs.PARTS)]
    assert len(names) == len(set(names)) == 2 + 1 + 2 + 2 + 3 * 4 + 2 + 4
    (many, _) = plan(args, ["throughput"])
    assert many.name == "throughput-fused-1.7b"
    given = " ".join(many.arguments)
    assert "--profile throughput --closed 64 256 --open" in given
    (http,) = [job for job in plan(args, ["http"]) if job.name == "http-split-0.6b"]
    said = " ".join(http.arguments)
    assert "--placements split --size 0.6b" in said
    assert "--seeds 3 4 --seed 3" in said
    assert not list(plan(arguments(tmp_path), ["peers"]))


def script(tmp_path: Path, name: str, body: str, *more: str) -> Job:
    """A job whose process counts its runs in a file and then does `body`; `out` is its file."""
    file = tmp_path / f"{name}.py"
    file.write_text(
        "import json, pathlib, sys, time\n"
        f"runs = pathlib.Path({str(tmp_path / name)!r})\n"
        "runs.write_text(runs.read_text() + 'x' if runs.exists() else 'x')\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n" + body + "\n"
    )
    return Job(name, (str(file), *more), needs_s=5)


def runs(tmp_path: Path, name: str) -> int:
    file = tmp_path / name
    return len(file.read_text()) if file.exists() else 0


WRITE = "out.write_text(json.dumps({'figure': 7}))"


def test_a_part_that_was_done_is_not_repeated_unless_asked(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--budget-s", "60")
    store = Store(args.out)
    job = script(tmp_path, "part", WRITE)
    assert bench.run_all(args, [job], store) == {}
    assert bench.run_all(args, [job], store) == {}
    assert runs(tmp_path, "part") == 1
    stored = store.all()["part"]
    assert (stored["figure"], stored["complete"]) == (7, True)
    # With other options it is another measurement.
    assert bench.run_all(args, [script(tmp_path, "part", WRITE, "--other")], store) == {}
    assert runs(tmp_path, "part") == 2
    again = arguments(tmp_path, "--budget-s", "60", "--again")
    assert bench.run_all(again, [script(tmp_path, "part", WRITE, "--other")], store) == {}
    assert runs(tmp_path, "part") == 3


def test_a_part_that_fails_or_has_no_time_is_named_and_the_others_run(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--budget-s", "60")
    store = Store(args.out)
    broken = script(tmp_path, "broken", "sys.exit('no such device')")
    long = Job("long", (), needs_s=1000)
    good = script(tmp_path, "good", WRITE)
    missing = bench.run_all(args, [broken, long, good], store)
    assert list(missing) == ["broken", "long"]
    assert "ended with 1" in missing["broken"].reason
    assert "no such device" in missing["broken"].reason
    assert not missing["broken"].goes_on
    assert missing["long"].goes_on
    assert list(store.all()) == ["good"]


def test_a_part_beyond_the_budget_is_ended(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--budget-s", "6")
    job = script(tmp_path, "endless", "time.sleep(600)")
    missing = bench.run_all(args, [Job(job.name, job.arguments, needs_s=1)], Store(args.out))
    assert missing["endless"].goes_on
    assert "out of time" in missing["endless"].reason


def server(placement: str, *levels: dict[str, Any], complete: bool = True) -> dict[str, Any]:
    start = {
        "time_utc": "2026-01-01T00:00:00Z",
        "caches_empty": True,
        "ready_s": 41.5,
        "memory_before_mib": [4],
        "memory_idle_mib": [12_345],
        "memory_peak_mib": [23_456],
    }
    return {
        "placement": placement,
        "config": {"a": 1},
        "health": {"config_digest": "c0ffee"},
        "starts": [start],
        "levels": list(levels),
        "notes": [],
        "complete": complete,
    }


def test_a_server_measurement_goes_on_with_the_levels_that_are_missing() -> None:
    before = {
        "facts": facts(),
        "servers": [
            server(
                "fused",
                level("closed", 16),
                level("closed", 64, stopped="after 3 s"),
                level("open", 20.0, 1, first_playable_s=late(0.5, None)),
                complete=False,
            )
        ],
    }
    measured = Measured("fused", {"a": 1})
    resume([measured], before, facts(time_utc="later"))
    # The level that was cut short is repeated; the open one had a failed request at its p95.
    assert measured.done() == {ClosedLoop(16, 20): 0.03, OpenLoop(20.0, 5.0, 2.0, 1): math.inf}
    assert measured.starts[0].ready_s == 41.5
    assert len(measured.as_json(requests=False)["levels"]) == 2


@pytest.mark.parametrize(
    ("config", "changes"),
    [({"a": 2}, {}), ({"a": 1}, {"workload": {"seed": 9}}), ({"a": 1}, {"commit": "def456"})],
)
def test_what_was_measured_otherwise_is_not_gone_on_with(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    before = {"facts": facts(), "servers": [server("fused", level("closed", 16), complete=False)]}
    measured = Measured("fused", config)
    resume([measured], before, facts(**changes))
    assert measured.done() == {}
    assert measured.starts == []


def test_every_seed_of_an_open_level_is_run() -> None:
    from load_tests.serve_bench import parse as parse_serve_bench

    assert ladders_of(parse_serve_bench(["--seeds", "4", "5"])).seeds == (4, 5)
    assert ladders_of(parse_serve_bench(["--seed", "6"])).seeds == (6,)


def facts(**changes: Any) -> dict[str, Any]:
    gpu = {"name": "H200", "driver_version": "580.1", "memory.total": "143771"}
    workload = {"min_frames": 60, "max_frames": 60, "response_format": "pcm"}
    common = {
        "time_utc": "2026-01-02T03:04:05Z",
        "command": "python -m load_tests.part",
        "gpus": [gpu],
        "cpus": 16,
        "python_ms": 31.5,
        "python": "3.12.1",
        "versions": {"torch": "2.11"},
        "commit": "abc123",
        "workload": workload,
    }
    return {**common, **changes}


def stored_results() -> dict[str, dict[str, Any]]:
    levels = [
        level("closed", 1, first_playable_s=late(0.0115, 0.02)),
        level("closed", 64, audio_s_per_s_window=650.0),
        level("open", 20, 0, first_playable_s=late(0.015, 0.020)),
        level("open", 20, 1, first_playable_s=late(0.017, 0.029)),
        level("open", 20, 2, first_playable_s=late(0.0155, 0.027)),
        level("open", 60, 0),
        level("open", 80, 0, underruns=3),
    ]
    loop = {"streams": 64, "first_ms_p50": 20.0, "first_ms_max": 30.0, "audio_s_per_s": 731.0}
    return {
        "frame-1.7b": {
            "facts": facts(config_digest="decade"),
            "rows": [frame_row(1, 3.9).as_json(), frame_row(64, 8.1).as_json()],
            "first_audio_ms": 9.1,
            "loops": [loop],
        },
        "predictor-1.7b": {
            "facts": facts(),
            "rows": [
                {
                    "batch": n,
                    "floor": 0.56,
                    "eager": 12.0,
                    "default": ms,
                    "default same": 1.0,
                    "default error": 0.8,
                }
                for n, ms in ((1, 1.4), (64, 2.6))
            ],
        },
        "decoder": {
            "facts": facts(),
            "dtypes": {"bf16": [{"streams": 1, "frames": t, "ms": 1.0 + t} for t in (1, 12)]},
        },
        "first-audio-1.7b": {
            "facts": facts(),
            "medians_ms": {"queued": 0.5, "launched": 2.0, "sum": 8.2},
        },
        "http-fused-1.7b": {"facts": facts(), "servers": [server("fused", *levels)]},
        "throughput-fused-1.7b": {
            "facts": facts(),
            "servers": [server("fused", level("closed", 256, audio_s_per_s_window=1520.0))],
        },
        "startup-fused-1.7b": {"facts": facts(), "servers": [server("fused")]},
        "peers-ours-1-1.7b": {
            "facts": facts(),
            "peer": "ours",
            "chunk": 1,
            "frames": 100,
            "first_audio_ms": 9.1,
            "rtf": 0.044,
            "audio_s_per_s": 22.7,
        },
    }


def test_a_report_is_composed_from_what_is_stored(tmp_path: Path) -> None:
    text = compose(tmp_path, stored_results(), {"memory-fused-1.7b": "not run"})
    assert (tmp_path / "report.md").read_text() == text
    for line in (
        "| GPU | H200, 143771 MiB |",
        "| driver | 580.1 |",
        "| commit | abc123 |",
        "| a million additions in Python, ms | 31.5 |",
        "| configuration hash | decade (frame-1.7b); c0ffee (fused-1.7b); c0ffee (fused-1.7b,"
        " profile throughput) |",
        "| seeds of open loops | 0, 1, 2 |",
        "| open, 20 | 30 | 0 | 15.5 (15.0 to 17.0) | 27.0 (20.0 to 29.0) | 100 | 0 (0) | 40.0 |",
        "| `fused` | 1.7b | as over HTTP above | empty | 41.5 | 12,345 | 23,456 |",
        "| `fused` | 1.7b | profile `throughput` | empty | 41.5 | 12,345 | 23,456 |",
        "## Over HTTP, `fused`, profile `throughput`, 1.7b",
        "| 64 | 20.0 | 30.0 | 731 |",
        "| 1 | 2.00 | 13.00 |",
        "| 1.7b | 0.50 | 2.00 | 8.20 |",
        "| ours, chunks of 1 | 100 | 9.1 | 0.044 |",
        "- `memory-fused-1.7b`: not run",
    ):
        assert line in text.splitlines()


def test_a_report_shows_that_parts_were_measured_with_different_commits(tmp_path: Path) -> None:
    results = stored_results()
    results["decoder"]["facts"] = facts(commit="def456")
    assert "| commit | abc123; def456 |" in compose(tmp_path, results, {})


def test_the_targets_say_met_missed_or_not_measured() -> None:
    rows = target_table(Results(stored_results())).splitlines()[2:]
    assert len(rows) == len(TARGETS)
    assert rows == [
        "| `fused`, one stream, p50 | <= 12 ms | 11.5 | met |",
        "| `split`, one stream, p50 | <= 18 ms | - | not measured |",
        "| `fused`, 20 requests/s, p50 | <= 16 ms | 15.5 | met |",
        "| `fused`, 20 requests/s, p95 | <= 28 ms | 27.0 | met |",
        "| `fused`, p95 <= 100 ms, no underrun, up to | >= 60 requests/s | 60.0 | met |",
        "| `fused`, 64 streams | >= 800 audio-s/s | 650 | **missed** |",
        "| `fused`, 256 streams | >= 1,500 audio-s/s | - | not measured |",
        "| the same with profile `throughput`, 64 streams | >= 800 audio-s/s | - | not measured |",
        "| the same with profile `throughput`, 256 streams | >= 1,500 audio-s/s | 1,520 | met |",
        "| code predictor, 1 stream | <= 1.5 ms | 1.40 | met |",
        "| code predictor, 64 streams | <= 2.5 ms | 2.60 | **missed** |",
        "| whole frame step, 1 stream | <= 4 ms | 3.90 | met |",
        "| whole frame step, 64 streams | <= 8 ms | 8.10 | **missed** |",
    ]
