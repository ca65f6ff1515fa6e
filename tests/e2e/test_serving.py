"""What a client sees of a whole server, in both placements."""

import base64
import fcntl
import io
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
from websockets.sync.client import ClientConnection, connect

from load_tests.loops.client import server_timings
from load_tests.servers.processes import processes
from serve_app.launch.keeper.proxies import STAND_IN
from serve_app.models.checkpoint.embedded import embedded_checkpoint
from tests.e2e import open_streams
from tests.e2e.conftest import DRAIN_S, REPOSITORY, SPEECH, Server, assert_over
from tests.e2e.open_streams import Open
from tests.golden.make_codes import FILE, SETS, WAVEFORM, weights_hash
from tests.waiting import wait_until
from training.listening.recogniser import Recogniser, shipped_model
from training.listening.sound import load
from training.listening.words import word_errors

TEXT = "One, two, three: this is a test."
VOICE = "emma"
SAMPLE_RATE_HZ = 24000
SAMPLES_PER_FRAME = 1920
NUM_FRAMES = 20
# Samples are rounded to 16 bits on both sides, of sums taken in another order (float32, about
# 1e-5).
TOLERANCE_LSB = 2
# The recogniser's own errors included.
MOST_WRONG_WORDS = 0.25
# Far more than is ever read: who sends this hangs up long before the end.
ENDLESS = {"min_new_tokens": 1000, "max_new_tokens": 1000}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)


def body(**changes: Any) -> dict[str, Any]:
    fields = {"model": "tts-1", "input": TEXT, "voice": VOICE, "seed": 7, "response_format": "pcm"}
    return {**fields, **changes}


def speak(server: Server, **changes: Any) -> bytes:
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=body(**changes), timeout=120)
    answer.raise_for_status()
    return answer.content


def test_a_request_has_its_line_in_the_log_at_once(server: Server) -> None:
    name = f"seen-{server.placement}"
    headers = {"x-request-id": name}
    url = f"{server.url}/v1/audio/speech"
    assert httpx.post(url, json=body(), headers=headers, timeout=120).status_code == 200
    logs = "ray/session_latest/logs/serve/replica_*Ingress*.log"
    end_s = time.monotonic() + 5
    while time.monotonic() < end_s:
        lines = [line for log in server.folder.glob(logs) for line in log.read_text().splitlines()]
        found = [line for line in lines if f"id={name} " in line]
        if found:
            break
        time.sleep(0.1)
    (line,) = found
    assert "status=200" in line
    assert "audio_s=" in line


def wait_until_idle(server: Server, within_s: float) -> float:
    """Seconds until no stage works on anything."""
    start = time.monotonic()
    while (left := server.num_streams()) > 0:
        elapsed = time.monotonic() - start
        assert elapsed < within_s, f"{left:g} streams {elapsed:.2f} s after the last client left"
        time.sleep(0.02)
    return time.monotonic() - start


def test_health_says_what_runs_where(server: Server) -> None:
    health = httpx.get(f"{server.url}/health").json()
    assert health["status"] == "healthy"
    assert health["placement"] == server.placement
    assert health["embedded"] is True


def test_a_browser_finds_the_playground(server: Server) -> None:
    headers = {"Accept": "text/html"}
    page = httpx.get(server.url, headers=headers, follow_redirects=True)
    assert str(page.url) == f"{server.url}/web/"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (
        httpx.get(f"{server.url}/web/js/main.js")
        .headers["content-type"]
        .startswith("text/javascript")
    )


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_nothing_listens_beyond_this_machine(server: Server) -> None:
    """What `ss -ltn` shows of it: Ray's own processes, HAProxy and standbys included."""
    open_ports: list[str] = []
    listening: set[int] = set()
    for process in server.processes():
        sockets = [c for c in process.net_connections("tcp") if c.status == "LISTEN"]
        listening |= {c.laddr.port for c in sockets}
        beyond = [c.laddr for c in sockets if not is_loopback(c.laddr.ip)]
        open_ports += [f"{address} of {process.cmdline()[:3]}" for address in beyond]
    assert httpx.URL(server.url).port in listening
    assert not open_ports


def test_no_stage_gives_way_to_other_programs(server: Server) -> None:
    def standing(pid: int) -> tuple[int, str]:
        killed_first = Path(f"/proc/{pid}/oom_score_adj").read_text()
        return os.getpriority(os.PRIO_PROCESS, pid), killed_first

    stages = [p for p in processes(p.pid for p in server.processes()) if p.kind != "raylet"]
    assert {"ingress", "controller", "haproxy"} < {stage.kind for stage in stages}
    own = standing(os.getpid())
    assert [stage for stage in stages if standing(stage.pid) != own] == []


def test_what_clears_temporary_folders_passes_its_own_by(server: Server) -> None:
    environments = [process.environ() for process in server.processes()]
    folders = {e["TTS_SERVER_FOLDER"] for e in environments if "TTS_SERVER_FOLDER" in e}
    assert len(folders) == 1
    for folder in (*map(Path, folders), server.folder / "ray" / "session_latest"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


def test_the_openai_client_gets_a_wav_file(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(
        model="tts-1",
        voice=VOICE,
        input=TEXT,
        response_format="wav",
        extra_body={"seed": 7, "min_new_tokens": NUM_FRAMES, "max_new_tokens": NUM_FRAMES},
    )
    data = answer.read()
    with wave.open(io.BytesIO(data)) as file:
        assert file.getframerate() == SAMPLE_RATE_HZ
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
    # A stream's header cannot know the length: the data is what follows it.
    assert len(data) - 44 == NUM_FRAMES * SAMPLES_PER_FRAME * 2


def test_the_openai_client_gets_pcm_as_it_is_made(client: openai.OpenAI) -> None:
    arrivals: list[float] = []
    size = 0
    with client.audio.speech.with_streaming_response.create(
        model="tts-1",
        voice=VOICE,
        input=TEXT,
        response_format="pcm",
        extra_body={"seed": 7, "min_new_tokens": 60, "max_new_tokens": 60},
    ) as answer:
        timings = server_timings(answer.headers["server-timing"])
        for data in answer.iter_bytes():
            arrivals.append(time.monotonic())
            size += len(data)
    assert list(timings) == ["talker_queue", "talker", "decode", "stages", "replica", "ingress"]
    assert timings["talker_queue"] <= timings["talker"]
    assert timings["talker"] + timings["decode"] <= timings["stages"]
    assert timings["stages"] + timings["replica"] <= timings["ingress"]
    assert size == 60 * SAMPLES_PER_FRAME * 2
    assert len(arrivals) > 3
    assert arrivals[-1] > arrivals[0]


def test_greedy_audio_equals_what_the_reference_package_makes(client: openai.OpenAI) -> None:
    name, index = WAVEFORM
    case = SETS[name][3][index]
    golden = np.load(FILE)
    assert str(golden[f"{name}/weights"]) == weights_hash(embedded_checkpoint())
    answer = client.audio.speech.create(
        model="tts-1",
        voice=case["voice"],
        input=case["text"],
        response_format="wav",
        extra_body={
            "language": case["language"],
            "temperature": 0,
            "stream": False,
            "normalization_options": {"normalize": False},  # the reference is given "10:30" as such
        },
    )
    with wave.open(io.BytesIO(answer.read())) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    expected = golden["waveform"]
    assert samples.shape == expected.shape
    difference = np.abs(samples.astype(np.int32) - expected.astype(np.int32))
    worst = int(difference.argmax())
    assert difference.max() <= TOLERANCE_LSB, (
        f"{difference.max()} at sample {worst} (frame {worst // 1920}) of {len(samples)}"
    )


def test_the_words_of_the_first_example_are_heard(server: Server, tmp_path: Path) -> None:
    """README's first program makes a file in which a recogniser hears the words."""
    model = shipped_model()
    if model is None:
        pytest.skip("NOBODY LISTENED: no recogniser, pip install 'moonshine-voice<0.1'")
    examples = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    program = next(example for example in examples if "openai" in example)
    program = program.replace("http://127.0.0.1:8000", server.url)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    (file,) = tmp_path.iterdir()
    heard = Recogniser(model).hear(load(file))
    text = re.findall(r'input="(.*?)"', program)[0]
    errors, words = word_errors(text, heard)
    assert errors <= words * MOST_WRONG_WORDS, heard


def test_a_seed_gives_the_same_audio_each_time(server: Server) -> None:
    assert speak(server, max_new_tokens=NUM_FRAMES) == speak(server, max_new_tokens=NUM_FRAMES)


def test_one_endpoint_has_the_metrics_of_all_stages(server: Server) -> None:
    assert speak(server, max_new_tokens=NUM_FRAMES)
    wanted = {
        'tts_requests_total{application="tts",deployment="Ingress",': "the ingress",
        "tts_time_to_first_audio_seconds_bucket": "its histograms",
        "tts_stage_steps_total": "a stage's counters",
        "tts_stage_step_seconds_bucket": "a stage's histograms",
        "tts_requests_running": "a stage's gauges",
        f'deployment="{SPEECH[server.placement]}",state="ready"}} 1': "Serve",
    }
    deadline = time.monotonic() + 60  # processes report to their node's agent every ten seconds
    while True:
        text = httpx.get(f"{server.url}/metrics", timeout=20).text
        series = [line for line in text.splitlines() if not line.startswith("#")]
        missing = {sign for sign in wanted if not any(sign in line for line in series)}
        if not missing:
            break
        assert time.monotonic() < deadline, (missing, text[:3000])
        time.sleep(1)
    assert all(line.startswith("tts_") for line in series)


def test_a_wrong_request_gets_a_status_and_a_reason(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError):
        client.audio.speech.create(model="tts-1", voice="nobody-we-know", input=TEXT)
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(model="no-such-model", voice=VOICE, input=TEXT)
    wait_until_idle(server, 5)


def test_text_of_thousands_of_ids_is_spoken_and_a_stream_beside_it_goes_on(server: Server) -> None:
    """1,100 emoji of four ids each, beside the frames: such a text ended the engine once."""
    limits = {"min_new_tokens": 3 * NUM_FRAMES, "max_new_tokens": 3 * NUM_FRAMES}
    alone = np.frombuffer(speak(server, **limits), np.int16).astype(np.int32)
    before = {name: process.pid for name, (process,) in server.replicas().items()}
    url = f"{server.url}/v1/audio/speech"
    with httpx.stream("POST", url, json=body(**limits), timeout=120) as beside:
        pieces = beside.iter_raw()
        heard = next(pieces)
        parrots = speak(
            server,
            input="\U0001f99c" * 1100,
            normalization_options=dict.fromkeys(("normalize", "strip_emoji"), False),
            non_streaming_mode=False,
            max_new_tokens=NUM_FRAMES,
        )
        heard += b"".join(pieces)
    assert 0 < len(parrots) <= (NUM_FRAMES * SAMPLES_PER_FRAME + SAMPLE_RATE_HZ) * 2
    together = np.frombuffer(heard, np.int16)
    assert together.shape == alone.shape
    # In other chunks, whose sums are rounded from another order.
    assert np.abs(together - alone).max() <= TOLERANCE_LSB
    assert {name: process.pid for name, (process,) in server.replicas().items()} == before


def test_a_client_that_leaves_frees_the_engine_at_once(server: Server) -> None:
    freed_s: list[float] = []
    for _ in range(5):
        with httpx.stream(
            "POST", f"{server.url}/v1/audio/speech", json=body(**ENDLESS), timeout=60
        ) as answer:
            assert answer.status_code == 200
            # Kept: an iterator that is dropped closes the connection.
            pieces = answer.iter_raw()
            next(pieces)
            assert server.num_streams() >= 1
        freed_s.append(wait_until_idle(server, 5))
    # The best of five: whatever else this machine does at the moment only adds to it.
    assert min(freed_s) < 0.5, freed_s


def test_200_clients_that_come_and_go_leave_nothing_behind(server: Server) -> None:
    speak(server, max_new_tokens=4)
    wait_until_idle(server, 5)
    before = {name: process.num_fds() for name, (process,) in server.replicas().items()}
    for number in range(200):
        hang_up(server, after_audio=number % 4 == 0)
    wait_until_idle(server, 10)
    assert len(speak(server, max_new_tokens=4)) > 0
    after = {name: process.num_fds() for name, (process,) in server.replicas().items()}
    assert after.keys() == before.keys(), "a replica was replaced"
    for name, count in after.items():
        # A few connections between replicas may have been opened for good.
        assert count <= before[name] + 16, f"{name} had {before[name]} open files, now {count}"


def hang_up(server: Server, *, after_audio: bool) -> None:
    """Send a request on a connection of its own and close it, before or after the first audio."""
    url = httpx.URL(server.url)
    payload = httpx.Request("POST", url, json=body(**ENDLESS)).content
    head = (
        "POST /v1/audio/speech HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(head.encode() + payload)
        if after_audio:
            assert connection.recv(4096)


# WebSockets, through HAProxy and Serve's replica

WORDS = [
    "As",
    "far",
    "as",
    "I",
    "know,",
    "this",
    "is",
    "so.",
    "And",
    "that",
    "is",
    "so",
    "as",
    "well,",
    "or",
    "nearly",
    "so.",
]
TOKEN_S = 1 / 30
FRAMES_OF_A_UNIT = 12


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def until(socket: ClientConnection, kind: str) -> tuple[dict[str, Any], bytes]:
    """The next message of a kind, and the audio that came before it."""
    audio = b""
    while True:
        raw = socket.recv(timeout=60)
        if isinstance(raw, bytes):
            audio += raw
            continue
        message = json.loads(raw)
        assert message["type"] != "error", message
        if message["type"] == kind:
            return message, audio


def test_text_is_spoken_as_it_comes_and_cancel_frees_the_stages(server: Server) -> None:
    url = server.url.replace("http", "ws", 1) + "/v1/audio/speech/stream"
    limits = {"min_new_tokens": FRAMES_OF_A_UNIT, "max_new_tokens": FRAMES_OF_A_UNIT}
    with connect(url) as socket:
        send(socket, "session.config", voice=VOICE, response_format="pcm", seed=7, **limits)
        for word in WORDS[:7]:
            send(socket, "input.text", text=f"{word} ")
            time.sleep(TOKEN_S)
        # The first clause is heard while its sentence has no end yet.
        start, _ = until(socket, "audio.start")
        assert start["sentence_text"] == "As far as I know,"
        for word in WORDS[7:]:
            send(socket, "input.text", text=f"{word} ")
        send(socket, "input.done")
        done, audio = until(socket, "session.done")
        assert done["total_sentences"] == 3
        pauses = round((0.05 + 0.15) * 24000) * 2
        assert len(audio) == 3 * FRAMES_OF_A_UNIT * SAMPLES_PER_FRAME * 2 + pauses

        send(socket, "session.config", voice=VOICE, response_format="mp3", **ENDLESS)
        send(socket, "input.text", text="Stop me. ")
        send(socket, "input.flush")
        until(socket, "audio.start")
        assert server.num_streams() > 0
        send(socket, "input.cancel")
        done, _ = until(socket, "session.done")
        assert done["cancelled"] is True
        wait_until_idle(server, within_s=5)
        send(socket, "session.close")


def test_a_client_that_vanishes_frees_the_stages(server: Server) -> None:
    url = server.url.replace("http", "ws", 1) + "/v1/audio/speech/stream"
    with connect(url) as socket:
        send(socket, "session.config", voice=VOICE, response_format="opus", **ENDLESS)
        send(socket, "input.text", text="Do not stop me. ")
        send(socket, "input.done")
        until(socket, "audio.start")
        assert server.num_streams() > 0
    wait_until_idle(server, within_s=10)


def test_the_sdk_has_a_text_spoken_in_realtime(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    item: Any = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "Good morning."}],
    }
    audio = b""
    with client.realtime.connect(model="gpt-realtime-2.1-mini") as connection:
        for event in connection:
            if event.type == "session.created":
                connection.response.create(response={"conversation": "none", "input": [item]})
            elif event.type == "response.output_audio.delta":
                audio += base64.b64decode(event.delta)
            elif event.type == "response.done":
                assert event.response.status == "completed"
                break
            assert event.type != "error", event
    assert audio
    assert len(audio) % (SAMPLES_PER_FRAME * 2) == 0


def haproxies(server: Server, of: str = "") -> list[psutil.Process]:
    """Those whose configuration lies in a folder of that name."""
    found = [process for process in server.processes() if "haproxy" in process.name()]
    return [process for process in found if of in " ".join(process.cmdline())]


def test_where_haproxy_is_killed_whoever_comes_is_served_until_serve_has_its_own(
    server: Server,
) -> None:
    if server.placement != "fused":
        pytest.skip("HAProxy does not know of placements")
    for process in haproxies(server):
        process.kill()
    wait_until(lambda: is_ready(server), 15, told="nobody stands in")
    assert len(haproxies(server, f"/{STAND_IN}/")) == 1
    assert speak(server, max_new_tokens=NUM_FRAMES)
    wait_until(lambda: not haproxies(server, f"/{STAND_IN}/"), 120, every_s=0.5)
    assert len(haproxies(server)) == 1
    assert speak(server, max_new_tokens=NUM_FRAMES)


def is_ready(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_an_ingress_that_is_stopped_goes_on_with_its_streams(server: Server) -> None:
    expected = speak(server, min_new_tokens=60, max_new_tokens=60)
    (ingress,) = server.replicas()["Ingress"]
    fields = body(min_new_tokens=60, max_new_tokens=60)
    with httpx.stream("POST", f"{server.url}/v1/audio/speech", json=fields, timeout=60) as answer:
        pieces = answer.iter_raw()
        heard = next(pieces)
        ingress.suspend()
        heard += b"".join(pieces)
    got, wanted = (np.frombuffer(audio, np.int16).astype(np.int32) for audio in (heard, expected))
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= TOLERANCE_LSB
    assert server.replicas()["Ingress"][0].pid == ingress.pid


# The last ones: they end the server.

FRAMES_OF_AN_END = 80


def test_told_to_end_it_finishes_what_it_speaks_and_takes_nothing_new(server: Server) -> None:
    if server.placement != "fused":
        pytest.skip("the other one is ended by the next test")
    kinds = (open_streams.pcm, open_streams.sse, open_streams.file, open_streams.live)
    with Open(server.url, FRAMES_OF_AN_END, *kinds) as undisturbed:
        undisturbed.tell()
        expected = undisturbed.heard()
    with (
        httpx.Client(base_url=server.url, timeout=10) as client,
        Open(server.url, FRAMES_OF_AN_END, *kinds, open_streams.realtime) as streams,
    ):
        assert client.get("/ready").status_code == 200
        told_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/ready").status_code == 503, 5)
        refused = client.post("/v1/audio/speech", json=body())
        refused_s = time.monotonic() - told_s
        health = client.get("/health")
        streams.tell()
        heard = streams.heard()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_draining"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["connection"] == "close"
    assert refused_s < 2
    assert (health.status_code, health.json()["status"]) == (200, "draining")
    assert all(speech.is_whole and not speech.errors for speech in heard.values()), heard
    for kind, speech in expected.items():
        got, wanted = samples(heard[kind]), samples(speech)
        assert got.shape == wanted.shape, kind
        assert np.abs(got - wanted).max() <= TOLERANCE_LSB, kind
    assert (expected["live"].closed, heard["live"].closed) == (None, open_streams.GOING_AWAY)
    assert heard["realtime"].closed == open_streams.GOING_AWAY
    assert_over(server)


def samples(heard: open_streams.Heard) -> np.ndarray:
    return np.frombuffer(heard.audio, np.int16).astype(np.int32)


def test_what_does_not_end_in_time_is_told_so_and_cut(server: Server) -> None:
    if server.placement != "split":
        pytest.skip("the other one is ended by the test before")
    kinds = (open_streams.pcm, open_streams.sse, open_streams.live, open_streams.unended)
    with Open(server.url, open_streams.ENDLESS_FRAMES, *kinds) as streams:
        told_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        streams.tell()
        heard = streams.heard()
    took_s = time.monotonic() - told_s
    assert DRAIN_S["split"] <= took_s < DRAIN_S["split"] + 5
    assert all(speech.audio and not speech.is_whole for speech in heard.values())
    for kind in ("sse", "live", "unended"):
        assert heard[kind].errors == ("server_draining",), kind
    for kind in ("live", "unended"):
        assert heard[kind].closed == open_streams.GOING_AWAY, kind
    assert_over(server)
