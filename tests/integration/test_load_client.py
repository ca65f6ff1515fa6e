"""The load client against the application around fakes, over real sockets."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Response

from load_tests.__main__ import main
from load_tests.curve.figures import refused_apart
from load_tests.loops.client import AudioShape, RequestResult, SpeechClient
from load_tests.loops.fleet import Fleet, merged
from load_tests.loops.level import Level
from load_tests.loops.metrics import summarize
from load_tests.loops.retrying import RetryingClient, retried
from load_tests.loops.runner import (
    BurstLoop,
    ClosedLoop,
    OpenLoop,
    Run,
    run_burst,
    run_closed,
    run_open,
)
from load_tests.loops.workload import Workload, poisson_arrivals
from load_tests.reports.report import notes
from load_tests.servers.child import free_port
from load_tests.servers.fake import fake_server
from serve_app.config import IngressConfig
from serve_app.errors import Overloaded, StageFailed
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_card
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import Status
from serve_app.pipeline import synthesize
from serve_app.types import SpeechRequest

NUM_FRAMES = 12
SHAPE = AudioShape()
WORKLOAD = Workload(min_frames=NUM_FRAMES, max_frames=NUM_FRAMES)


class Service:
    """The application around a fake talker."""

    def __init__(self, **talker: Any) -> None:
        self.talker = FakeTalker(**{"num_frames": 100, "chunk_frames": (1, 2, 4), **talker})
        self.app = build_api(self.speak, Catalog([fake_card()]), IngressConfig(), self.status)

    def speak(self, request: SpeechRequest):
        return synthesize(self.talker, FakeSpeechDecoder(), request)

    async def status(self) -> Status:
        return Status("healthy", info={"config_digest": "0123456789ab"})


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application in a thread, with a loop of its own, on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def speak_once(app: FastAPI, shape: AudioShape = SHAPE, **client: Any) -> RequestResult:
    workload = Workload(
        min_frames=NUM_FRAMES,
        max_frames=NUM_FRAMES,
        response_format=("mp3" if shape.is_encoded else "wav" if shape.header_bytes else "pcm"),
    )

    async def go(url: str) -> RequestResult:
        async with SpeechClient(url, shape, **client) as speech:
            return await speech.speak(workload.call(0))

    with served(app) as url:
        return asyncio.run(go(url))


@pytest.mark.parametrize("header_bytes", [0, 44])
def test_a_request_is_complete_and_its_times_are_in_order(header_bytes: int) -> None:
    service = Service(frame_s=0.005)
    result = speak_once(service.app, AudioShape(header_bytes=header_bytes))
    assert (result.error, result.detail, result.status) == ("", "", 200)
    assert result.samples == result.expected_samples == NUM_FRAMES * 1920
    assert result.first_byte_s is not None
    assert result.first_playable_s is not None
    assert result.first_audible_s is not None
    assert 0 < result.first_byte_s <= result.first_playable_s < result.end_s
    assert result.first_audible_s <= result.end_s
    assert len(result.gaps_s) == len(result.arrivals) - 1 > 0
    (request,) = service.talker.requests
    assert request.streaming_text
    assert request.min_new_tokens == request.max_new_tokens == NUM_FRAMES


def test_who_is_refused_asks_again_as_told_and_waits_since_the_first_attempt() -> None:
    """Of three clients at once, two places, and a client that asks once more."""
    service, begun = Service(frame_s=0.002), []

    def look(priority: int) -> None:
        del priority
        begun.append(time.monotonic())
        if len(begun) > 2 and begun[-1] - begun[0] < 0.5:
            raise Overloaded("two are running")

    app = build_api(
        service.speak, Catalog([fake_card()]), IngressConfig(), service.status, look=look
    )

    async def go(url: str) -> Run:
        async with RetryingClient(url, SHAPE, retries=1) as client:
            return await run_burst(client, WORKLOAD, BurstLoop(3, times=1))

    with served(app) as url:
        results = asyncio.run(go(url)).results
    came = retried(results)
    assert (came.requests, came.complete, came.given_up, came.refusals) == (3, {0: 2, 1: 1}, 0, 1)
    (late,) = [result for result in results if result.refusals_s]
    assert late.ok
    assert late.first_playable_s is not None
    assert late.first_playable_s > late.waited_s >= 1.0
    assert came.first_s[1] >= 1.0 + came.let_in_s[0]
    assert "2 at once, 1 after 1 refusals" in came.text


def test_who_is_refused_too_often_gives_up() -> None:
    def look(priority: int) -> None:
        raise Overloaded("never")

    service = Service()
    app = build_api(
        service.speak, Catalog([fake_card()]), IngressConfig(), service.status, look=look
    )

    async def go(url: str) -> RequestResult:
        async with RetryingClient(url, SHAPE, retries=1) as client:
            return await client.speak(WORKLOAD.call(0))

    with served(app) as url:
        result = asyncio.run(go(url))
    assert (result.error, result.status, len(result.refusals_s)) == ("status", 429, 2)
    came = retried([result])
    assert (came.complete, came.given_up, came.refusals) == ({}, 1, 2)
    assert "0 complete (0 at once), 1 given up" in came.text


def test_a_fleet_at_a_full_server_waits_as_it_is_told() -> None:
    """Twice as many streams as places: whoever did not wait would be refused by the thousand."""
    port, plan = free_port(), ClosedLoop(4, 10_000, warm_up=0, max_s=4.0)
    workload = Workload(min_frames=60, max_frames=60)
    with Fleet(2) as fleet, fake_server(port, frame_s=0.02, places=2):
        futures = fleet.begin(f"http://127.0.0.1:{port}", workload, plan, asks_again=True)
        run = merged(plan, [future.result() for future in futures])
    let_in, refusals = refused_apart(run.results)
    assert summarize(replace(run, results=let_in)).failures == 0
    assert len(let_in) >= 2
    # No client is told to come again before a second has passed.
    assert 2 <= refusals.refusals <= plan.streams * 6
    assert refusals.given_up <= plan.streams
    assert all(r.waited_s >= 1.0 for r in let_in if r.refusals_s)


def test_who_fails_otherwise_does_not_ask_again() -> None:
    app = FastAPI()
    app.add_api_route("/v1/audio/speech", lambda: Response(status_code=503), methods=["POST"])

    async def go(url: str) -> RequestResult:
        async with RetryingClient(url, SHAPE, retries=3, refused_only=True) as client:
            return await client.speak(WORKLOAD.call(0))

    with served(app) as url:
        result = asyncio.run(go(url))
    assert (result.error, result.status, result.waited_s) == ("status", 503, 0.0)


def test_an_encoded_body_counts_as_the_samples_that_were_forced() -> None:
    result = speak_once(Service(frame_s=0.005).app, AudioShape(is_encoded=True))
    assert (result.error, result.detail, result.status) == ("", "", 200)
    assert result.samples == result.expected_samples == NUM_FRAMES * 1920
    assert result.first_audible_s is None
    assert 0 < result.arrivals[0][1] < result.num_bytes


def test_a_closed_loop_keeps_its_streams_busy_and_leaves_the_warm_up_out() -> None:
    service = Service(frame_s=0.002)

    async def go(url: str):
        async with SpeechClient(url, SHAPE) as client:
            return await run_closed(client, WORKLOAD, ClosedLoop(streams=4, requests=10))

    with served(service.app) as url:
        run = asyncio.run(go(url))
    figures = summarize(run)
    assert (figures.requests, figures.failures, len(run.warm_up)) == (10, 0, 4)
    assert len(service.talker.requests) == 14
    assert sorted(result.index for result in run.results) == list(range(10))
    # The streams start out of step: warm-ups of a quarter, a half, ... of the length.
    lengths = sorted(result.samples // 1920 for result in run.warm_up)
    assert lengths == [3, 6, 9, 12]
    assert figures.audio_s == pytest.approx(10 * NUM_FRAMES * 0.08)
    assert figures.audio_s_per_s > 0


def test_an_open_loop_sends_the_schedule_whatever_becomes_of_the_answers() -> None:
    service = Service(frame_s=0.02)  # 0.24 s per request, several at once
    plan = OpenLoop(rate_hz=30, duration_s=1.0, warm_up_s=0.5, seed=7)

    async def go(url: str):
        async with SpeechClient(url, SHAPE) as client:
            return await run_open(client, WORKLOAD, plan)

    with served(service.app) as url:
        run = asyncio.run(go(url))
    arrivals = poisson_arrivals(30, 1.5, seed=7)
    figures = summarize(run)
    assert len(run.warm_up) == sum(at_s < 0.5 for at_s in arrivals)
    assert figures.requests == sum(at_s >= 0.5 for at_s in arrivals)
    assert figures.failures == 0
    assert run.max_in_flight > 1
    assert all(result.lag_s >= 0 for result in run.results)
    assert figures.audio_s_per_s_window is not None
    first = min(result.scheduled_at_s for result in run.warm_up)
    gaps = [result.scheduled_at_s - first for result in run.results]
    expected = [at_s - arrivals[0] for at_s in arrivals if at_s >= 0.5]
    assert sorted(gaps) == pytest.approx(expected)


def test_a_burst_leaves_at_once_and_the_next_when_all_have_ended() -> None:
    service = Service(frame_s=0.005)

    async def go(url: str):
        async with SpeechClient(url, SHAPE) as client:
            return await run_burst(client, WORKLOAD, BurstLoop(size=6, times=2, pause_s=0.1))

    with served(service.app) as url:
        run = asyncio.run(go(url))
    assert [result.index for result in run.results] == list(range(12))
    assert all(result.ok for result in run.results)
    first, second = run.results[:6], run.results[6:]
    assert len({result.scheduled_at_s for result in first}) == 1
    ended_s = max(result.sent_at_s + result.end_s for result in first)
    assert second[0].scheduled_at_s >= ended_s + 0.1


def test_streams_that_run_beside_bursts_are_judged_by_themselves() -> None:
    plan = BurstLoop(size=3, times=2, pause_s=0.1, beside=2)

    async def go(url: str):
        async with SpeechClient(url, SHAPE) as client:
            return await run_burst(client, WORKLOAD, plan)

    with served(Service(frame_s=0.005).app) as url:
        run = asyncio.run(go(url))
    assert [result.index for result in run.results] == list(range(6))
    assert len({result.index for result in run.beside}) == len(run.beside) >= 4
    assert min(result.sent_at_s for result in run.beside) < run.results[0].scheduled_at_s
    for burst in (run.results[:3], run.results[3:]):
        begin_s = burst[0].scheduled_at_s
        end_s = max(result.sent_at_s + result.end_s for result in burst)
        assert any(r.sent_at_s < end_s and r.sent_at_s + r.end_s > begin_s for r in run.beside)
    level = Level.of(run)
    assert level.summary.requests == 6
    assert level.beside is not None
    assert (level.beside.requests, level.beside.failures) == (len(run.beside), 0)
    assert any(line.startswith(f"- {plan.label}: of {len(run.beside)} ") for line in notes([level]))


def test_a_refused_request_is_a_failure_with_the_servers_reason() -> None:
    result = speak_once(Service(fail_at=0, error=Overloaded("full")).app)
    assert (result.error, result.status) == ("status", 429)
    assert result.detail.startswith("429: ")
    assert result.samples == 0


def test_a_body_that_breaks_off_is_truncated() -> None:
    result = speak_once(Service(fail_at=5, frame_s=0.01, error=StageFailed("lost")).app)
    assert (result.error, result.status) == ("truncated", 200)
    assert 0 < result.samples < NUM_FRAMES * 1920


def test_a_body_that_ends_cleanly_but_early_is_a_failure() -> None:
    result = speak_once(Service(num_frames=5).app)
    assert (result.error, result.status) == ("length", 200)
    assert result.detail == f"{5 * 1920} samples, {NUM_FRAMES * 1920} expected"


def test_a_part_of_a_frame_is_no_audio() -> None:
    app = FastAPI()

    @app.post("/v1/audio/speech")
    async def speech() -> Response:
        return Response(b"\1" * 1001, media_type="audio/pcm")

    assert speak_once(app).error == "length"


def test_an_answer_that_takes_too_long_is_a_failure() -> None:
    result = speak_once(Service(frame_s=0.2).app, timeout_s=0.5)
    assert result.error == "timeout"
    assert result.end_s == pytest.approx(0.5, abs=0.4)


def test_nobody_there_is_a_failure() -> None:
    async def go() -> RequestResult:
        async with SpeechClient("http://127.0.0.1:1", SHAPE) as client:
            return await client.speak(WORKLOAD.call(0))

    result = asyncio.run(go())
    assert (result.error, result.status) == ("connection", 0)


def test_failures_stay_in_the_sample_of_a_loop() -> None:
    service = Service(fail_at=0, error=Overloaded("full"))

    async def go(url: str):
        async with SpeechClient(url, SHAPE) as client:
            return await run_closed(client, WORKLOAD, ClosedLoop(2, 6))

    with served(service.app) as url:
        figures = summarize(asyncio.run(go(url)))
    assert (figures.requests, figures.failures) == (6, 6)
    assert figures.failures_by_kind == {"status": 6}


def test_the_command_sweeps_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "out.json", tmp_path / "out.md"
    with served(Service(frame_s=0.001).app) as url:
        files = ["--url", url, "--out", str(out), "--report", str(text), "--frames", "5:9"]
        ladder = ["--closed", "1", "4", "--open", "20", "--duration", "1", "--warm-up", "0.2"]
        ladder += ["--burst", "3", "--bursts", "2", "--pause", "0.1"]
        assert main([*files, "sweep", *ladder]) == 0
    content = json.loads(out.read_text())
    assert [level["label"] for level in content["levels"]] == [
        "3 at once, 2 times",
        "1 stream",
        "4 streams",
        "20 requests/s",
    ]
    assert [level["failures"] for level in content["levels"]] == [0, 0, 0, 0]
    assert len(content["levels"][0]["bursts_p95_s"]) == 2
    assert content["health"]["config_digest"] == "0123456789ab"
    assert content["versions"]["ray"]
    assert content["workload"]["min_frames"] == 5
    assert "| closed, 4 streams |" in capsys.readouterr().out
    assert "| open, 20 requests/s |" in text.read_text()


def test_a_server_that_only_fails_fails_the_command() -> None:
    with served(Service(fail_at=0, error=Overloaded("full")).app) as url:
        assert main(["--url", url, "--timeout-s", "5", "closed", "--streams", "2"]) == 1
