"""Voices of recordings on a real server, with the real encoders: made, heard, shared and kept.

The first server has two ingresses before two checkpoints in `split`; the one after it, over the
same library, is spread over two nodes, of which one is lost.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile
import yaml
from websockets.sync.client import connect

from load_tests.loops.client import server_timings
from load_tests.servers.nodes import Room
from load_tests.servers.processes import descendants, processes
from load_tests.servers.server import ServerFailed, serving
from serve_app import serve_config
from tests.conftest import TinyCheckpoint
from tests.e2e.conftest import REPOSITORY, START_TIMEOUT_S, Server, free_port, run_server
from tests.parity.clips import recording
from tests.parity.reference import Reference
from tests.waiting import wait_until

RECORDING = recording(60_000, seed=1)
SAID = "A short recording, made by a formula."
# Without a pause in it: a WebSocket speaks a clause before it has seen the next one.
TEXT = "Good morning from me."
NUM_FRAMES = 24
LIMITS = {"min_new_tokens": NUM_FRAMES, "max_new_tokens": NUM_FRAMES}
# Greedy, so that no random number has to be the reference's.
BODY = {
    "model": "base",
    "input": TEXT,
    "language": "english",
    "temperature": 0,
    "response_format": "pcm",
    **LIMITS,
}
# Samples are rounded to 16 bits on both sides, of sums taken in another order.
TOLERANCE_LSB = 2
# Within which a voice is known everywhere; the request that asks takes its time on a busy machine.
KNOWN_S = 1.0
CLIENT_S = 180.0
STAGE_CPUS = 0.2
SMALL = {
    "talker": {"max_num_seqs": 4, "max_model_len": 256, "num_cpus": STAGE_CPUS},
    "code_predictor": {"num_cpus": STAGE_CPUS},
    "speech_decoder": {"max_streams": 4, "num_cpus": STAGE_CPUS},
}
TWO = {"min_replicas": 2, "max_replicas": 2, "target_ongoing_requests": 48}


def wav_of(samples: np.ndarray) -> bytes:
    """float32 [N], 24 kHz, as a file of 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, samples, 24000, format="WAV", subtype="PCM_16")
    return file.getvalue()


WAV = wav_of(RECORDING)


@dataclass(frozen=True)
class Ingress:
    """One of a server's ingresses, reached past the proxy."""

    url: str
    process: psutil.Process

    def add(self, name: str, data: bytes = WAV, **fields: str) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.url}/v1/audio/voices",
            data={"name": name, **fields},
            files={"audio_sample": ("recording", data)},
            timeout=CLIENT_S,
        )
        return answer.raise_for_status().json()

    def knows(self, name: str) -> bool:
        return httpx.get(f"{self.url}/v1/audio/voices/{name}", timeout=30).status_code == 200


def ask(url: str, **fields: Any) -> httpx.Response:
    """The answer; as a client does, again while the encoder that has to start is not there."""
    answer: httpx.Response | None = None

    def answered() -> bool:
        nonlocal answer
        answer = httpx.post(f"{url}/v1/audio/speech", json={**BODY, **fields}, timeout=CLIENT_S)
        return answer.status_code != 503

    wait_for(answered)
    assert answer is not None
    assert answer.status_code == 200, answer.text
    return answer


def spoken(url: str, **fields: Any) -> np.ndarray:
    """int16 [N]."""
    return np.frombuffer(ask(url, **fields).content, "<i2")


def assert_same_sound(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape == (NUM_FRAMES * 1920,)
    difference = np.abs(ours.astype(np.int32) - theirs.astype(np.int32))
    worst = int(difference.argmax())
    assert difference.max() <= TOLERANCE_LSB, (
        f"{difference.max()} at sample {worst} (frame {worst // 1920})"
    )


def ingresses_of(root: psutil.Process) -> list[Ingress]:
    """The ingresses below a process, in the order in which they were started."""
    found: list[Ingress] = []
    for known in processes(descendants(root.pid)):
        if known.kind != "ingress":
            continue
        process = psutil.Process(known.pid)
        for port in {c.laddr.port for c in process.net_connections("tcp") if c.status == "LISTEN"}:
            url = f"http://127.0.0.1:{port}"
            try:
                if httpx.get(f"{url}/version", timeout=10).status_code == 200:
                    found.append(Ingress(url, process))
            except httpx.HTTPError:
                continue  # it speaks gRPC
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    return wait_until(condition, START_TIMEOUT_S, every_s=0.2)


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# The reference's sound of a voice.
@dataclass(frozen=True)
class Expected:
    in_context: np.ndarray
    vector_only: np.ndarray


@pytest.fixture(scope="module")
def base(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("base", eos="unreachable")


@pytest.fixture(scope="module")
def expected(base: Path) -> Expected:
    """What the Qwen3-TTS package says with the recording, as a file of 16 bits has it."""
    reference = Reference(base)
    samples, _ = soundfile.read(io.BytesIO(WAV), dtype="float32")

    def said(text: str | None) -> np.ndarray:
        run = reference.speak(
            TEXT,
            cloned=reference.clone(samples, text),
            language="english",
            non_streaming_mode=False,
            max_new_tokens=NUM_FRAMES + 1,
        )
        return np.rint(run.wav.clip(-1, 1) * 32767).astype(np.int16)

    return Expected(said(SAID), said(None))


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tts-voices-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, library: Path, base: Path, tiny_checkpoint: TinyCheckpoint
) -> Iterator[Server]:
    config = yaml.safe_load((REPOSITORY / "configs/serve.several.yaml").read_text())
    front, model = config["applications"][:2]
    front["args"] = {"streams": 8, "ingress": {"voices": {"path": str(library)}}}
    front["deployments"][0]["user_config"] = {"default_model": "base"}
    front["deployments"][0]["autoscaling_config"] = TWO
    del model["deployments"]
    models = (("base", base), ("design", tiny_checkpoint("voice_design", eos="unreachable")))
    config["applications"] = [
        front,
        *(
            {
                **model,
                "name": name,
                "args": {
                    "model": str(path),
                    "served_model_name": name,
                    "placement": "split",
                    **SMALL,
                },
            }
            for name, path in models
        ),
    ]
    assert not list(serve_config.find_problems(config))
    with tempfile.TemporaryDirectory(prefix="tts-e2e-", dir="/tmp") as name:
        path = Path(name) / "clones.yaml"
        path.write_text(json.dumps(config))
        for server in run_server("split", Path(name), request.config, path, "base"):
            for model_name, _ in models:
                url = f"{server.url}/ready?model={model_name}"
                wait_for(lambda url=url: httpx.get(url, timeout=10).status_code == 200)
            yield server


def command(url: str, *arguments: str) -> str:
    """What `tts-stream` prints."""
    environment = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1"}
    made = subprocess.run(
        [sys.executable, "-m", "serve_app.cli.tts_stream", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        timeout=CLIENT_S,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_a_recording_is_spoken_with_as_the_reference_package_speaks(
    server: Server, expected: Expected, tmp_path: Path
) -> None:
    (tmp_path / "anna.wav").write_bytes(WAV)
    added = ("voices", "add", "Anna", str(tmp_path / "anna.wav"), "--text", SAID)
    assert command(server.url, *added).startswith("Anna\tvoice_")
    all_ = ingresses_of(server.process)
    wait_for(lambda: all(ingress.knows("Anna") for ingress in all_))
    assert_same_sound(spoken(server.url, voice="Anna"), expected.in_context)
    assert_same_sound(
        spoken(server.url, voice="anna", x_vector_only_mode=True), expected.vector_only
    )


def test_a_recording_in_the_request_is_the_same_voice(server: Server, expected: Expected) -> None:
    files = {"voice_file": ("recording", WAV)}
    fields = {key: str(value) for key, value in BODY.items()}
    for said, theirs in ((SAID, expected.in_context), (None, expected.vector_only)):
        more = {} if said is None else {"ref_text": said}
        answer = httpx.post(
            f"{server.url}/v1/audio/speech/upload",
            data={**fields, **more},
            files=files,
            timeout=CLIENT_S,
        )
        assert answer.status_code == 200, answer.text
        assert_same_sound(np.frombuffer(answer.content, "<i2"), theirs)


def test_what_a_voice_took_is_told_with_the_first_audio(server: Server) -> None:
    fresh = wav_of(recording(48_000, seed=9))
    all_ = ingresses_of(server.process)
    all_[0].add("Timed", fresh, ref_text=SAID)
    wait_for(lambda: all(ingress.knows("Timed") for ingress in all_))
    first = server_timings(ask(server.url, voice="Timed").headers["server-timing"])
    again = server_timings(ask(server.url, voice="Timed").headers["server-timing"])
    for timings in (first, again):
        assert 0 <= timings["voice"] < timings["ingress"]
    assert "voice" not in server_timings(
        ask(server.url, model="design", instructions="A deep voice.").headers["server-timing"]
    )


def test_what_one_ingress_is_told_the_other_knows_within_a_second(
    server: Server, expected: Expected
) -> None:
    one, other = ingresses_of(server.process)
    assert one.process != other.process
    for number, (here, there) in enumerate(((one, other), (other, one))):
        name = f"Shared-{number}"
        assert not there.knows(name)
        here.add(name, ref_text=SAID)
        made_s = time.monotonic()
        while not there.knows(name):
            assert time.monotonic() < made_s + KNOWN_S
        assert_same_sound(spoken(there.url, voice=name), expected.in_context)
        httpx.delete(f"{there.url}/v1/audio/voices/{name}").raise_for_status()
        gone_s = time.monotonic()
        while here.knows(name):
            assert time.monotonic() < gone_s + KNOWN_S


def test_a_websocket_speaks_with_a_cloned_voice(server: Server, expected: Expected) -> None:
    httpx.put(
        f"{server.url}/v1/audio/voice_aliases/nova", json={"voice": "Anna"}
    ).raise_for_status()
    # So long it may take until the other ingress knows of it.
    time.sleep(KNOWN_S)
    settings = {key: value for key, value in BODY.items() if key != "input"}
    url = server.url.replace("http", "ws", 1) + "/v1/audio/speech/stream"
    audio = b""
    with connect(url) as socket:
        # By another name that it has, which only this server's library knows.
        socket.send(json.dumps({"type": "session.config", "voice": "nova", **settings}))
        socket.send(json.dumps({"type": "input.text", "text": TEXT}))
        socket.send(json.dumps({"type": "input.done"}))
        while True:
            message = socket.recv(timeout=CLIENT_S)
            if isinstance(message, bytes):
                audio += message
                continue
            event = json.loads(message)
            assert event["type"] != "error", event
            if event["type"] == "session.done":
                break
    # Its last 5 ms fade, since more text may have come.
    ours, faded = np.frombuffer(audio, "<i2").copy(), 120
    ours[-faded:] = expected.in_context[-faded:]
    assert_same_sound(ours, expected.in_context)


def test_a_designed_voice_is_spoken_with_by_the_checkpoint_that_clones(server: Server) -> None:
    said = command(
        server.url, *("voices", "design", "Opa", "An old man.", "--say", "Hello.", "--seed", "3")
    )
    assert said.startswith("Opa\tvoice_")
    shown = json.loads(command(server.url, "voices", "show", "Opa"))
    assert shown["type"] == "prompt"
    first = spoken(server.url, voice="Opa")
    assert np.array_equal(first, spoken(server.url, voice="Opa"))
    assert not np.array_equal(first, spoken(server.url, voice="Anna"))


def test_each_checkpoint_of_several_in_split_is_whole(server: Server) -> None:
    health = httpx.get(f"{server.url}/health").json()
    stages = {"SpeechDecoder", "Talker", "CodePredictor"}
    assert {m["model"] for m in health["served"]} == {"base", "design"}
    for model in health["served"]:
        replicas = model["replicas"]
        assert all(replicas[name]["ready"] >= 1 for name in stages), replicas
    # A checkpoint that clones has an encoder beside its stages, and no other one has.
    encoders = {m["model"]: "VoiceEncoder" in m["replicas"] for m in health["served"]}
    assert encoders == {"base": True, "design": False}


@pytest.fixture(scope="module")
def spread(server: Server, library: Path, base: Path) -> Iterator[Any]:
    """A server over two nodes beside the head, an ingress and all stages on each, over the library
    that another server made; that one has ended.
    """
    server.process.send_signal(2)
    server.process.wait(60)
    config = yaml.safe_load((REPOSITORY / "configs/serve.fused.yaml").read_text())
    config["proxy_location"] = "HeadOnly"
    (application,) = config["applications"]
    application["args"] = {
        "model": str(base),
        "served_model_name": "base",
        "placement": "fused",
        **SMALL,
        "ingress": {"num_cpus": 0.3, "voices": {"path": str(library)}},
    }
    application["deployments"] = [
        {"name": name, "autoscaling_config": TWO, "max_replicas_per_node": 1}
        for name in ("Ingress", "Fused")
    ]
    assert not list(serve_config.find_problems(config))
    # The head has no room for stages, and each of the others for one of everything.
    with serving(config, None, free_port(), {}, [Room(0), Room(1), Room(1)]) as started:
        try:
            started.wait_until_ready(START_TIMEOUT_S)
        except ServerFailed as error:
            pytest.fail(f"{error}:\n{started.log.read_text()[-4000:]}")
        yield started


def test_voices_outlive_the_server_and_the_node_that_made_them(
    spread: Any, expected: Expected
) -> None:
    assert_same_sound(spoken(spread.url, voice="Anna"), expected.in_context)
    nodes = spread.nodes

    def found() -> dict[int, Ingress]:
        holders = {
            raylet: ingress
            for raylet in nodes.workers
            for ingress in ingresses_of(psutil.Process(raylet))
        }
        return holders if len(holders) == 2 else {}

    (lost, maker), (_, other) = wait_for(found).items()
    assert maker.process.pid in descendants(lost)
    maker.add("Otto", ref_text=SAID)
    nodes.lose(lost)
    wait_for(lambda: has_ended(maker.process))
    made_s = time.monotonic()
    while not other.knows("Otto"):
        assert time.monotonic() < made_s + KNOWN_S
    # Stages may have been lost as well; the ingress asks those that are left.
    assert_same_sound(spoken(other.url, voice="Otto"), expected.in_context)
    # And through the proxy, which learns of the loss by itself.
    wait_for(lambda: httpx.get(f"{spread.url}/ready", timeout=10).status_code == 200)
    assert_same_sound(spoken(spread.url, voice="Otto"), expected.in_context)
