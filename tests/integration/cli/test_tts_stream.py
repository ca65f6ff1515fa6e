"""The command `tts-stream`, as a process of its own, on a server with fake stages."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import Overloaded, StageFailed
from tests.integration.http.service import NUM_FRAMES, SEED, running, samples
from tests.unit.audio.signals import decoded
from tests.waiting import wait_until

COMMAND = (sys.executable, "-m", "serve_app.cli.tts_stream", "--seed", str(SEED))
TIMEOUT_S = 60
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server():
    with running() as (url, service):
        yield url, service


def environment(url, **more):
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return {**kept, "OPENAI_BASE_URL": f"{url}/v1", "PYTHONPATH": str(REPOSITORY), **more}


def run(url, *arguments, text=b"", **more):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=text,
        capture_output=True,
        timeout=TIMEOUT_S,
        env=environment(url, **more),
    )


@pytest.mark.parametrize("suffix", ["wav", "pcm", "mp3", "ogg", "aac", "flac"])
def test_a_file_of_any_format_is_written_and_measured(server, tmp_path, suffix):
    path = tmp_path / f"speech.{suffix}"
    done = run(server[0], "Hello.", "-o", path)
    assert done.returncode == 0, done.stderr
    assert b"first audio after" in done.stderr
    assert b"real-time factor" in done.stderr
    if suffix == "pcm":
        assert np.array_equal(np.frombuffer(path.read_bytes(), "<i2"), samples())
        return
    audio, rate_hz = decoded(path.read_bytes())
    assert len(audio) / rate_hz == pytest.approx(NUM_FRAMES * 0.08, abs=0.1)
    if suffix == "wav":
        with wave.open(str(path)) as reader:
            assert reader.getnframes() == len(samples())


def test_the_loudspeakers_get_the_samples(server, player):
    folder, heard = player
    done = run(
        server[0], "Hello", "there.", PATH=f"{folder}:{os.environ['PATH']}", HEARD=str(heard)
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.frombuffer(heard.read_bytes(), "<i2"), samples())
    assert "-r 24000 -" in heard.with_suffix(".arguments").read_text()
    assert server[1].talker.requests[-1].text == "Hello there."


def test_options_reach_the_server(server, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Aus einer Datei.", encoding="utf-8")
    options = ("-v", "serena", "-l", "de", "-i", "Whisper.", "-m", "tts-1", "-s", "2")
    done = run(server[0], "-f", file, "-o", "-", "--format", "pcm", *options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) / 2 == pytest.approx(len(samples()) / 2, rel=0.05)
    request = server[1].talker.requests[-1]
    assert (request.text, request.language) == ("Aus einer Datei.", "german")
    assert (str(request.voice), request.instructions) == ("serena", "Whisper.")


def test_lines_are_spoken_as_they_come(server):
    before = len(server[1].talker.requests)
    process = subprocess.Popen(
        [*COMMAND, "-q", "-o", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(server[0]),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"One.\n")
    process.stdin.flush()
    first = process.stdout.read(44 + 2 * len(samples()))
    process.stdin.write(b"Two.\n")
    process.stdin.close()
    rest = process.stdout.read()
    assert process.wait(TIMEOUT_S) == 0
    texts = [request.text for request in server[1].talker.requests[before:]]
    assert texts == ["One.", "Two."]
    with wave.open(io.BytesIO(first)) as reader:
        assert reader.getframerate() == 24000
    assert np.array_equal(np.frombuffer(first[44:] + rest, "<i2"), np.tile(samples(), 2))


def test_lists_are_printed(server):
    assert run(server[0], "--voices").stdout.decode().splitlines()[0].startswith("vivian")
    assert b"CustomVoice" in run(server[0], "--models").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["Hi.", "-v", "nobody", "-o", "-"], 1, "The voice 'nobody' does not exist."),
        (["Hi.", "-o", "-", "--base-url", "http://127.0.0.1:9"], 3, "no answer from"),
        (["--models", "--base-url", "http://127.0.0.1:80a"], 3, "not an address of a server"),
        (["--models", "--base-url", "http://[::1"], 3, "not an address of a server"),
        (["Hi."], 5, "nothing to play audio with"),
        (["-f", "/nowhere", "-o", "-"], 2, "tts-stream: /nowhere: No such file"),
        (["-f", sys.executable, "-o", "-"], 2, f"{sys.executable}: is no text in UTF-8"),
        (["Hi.", "-o", "-", "--ref-audio", "/nowhere"], 2, "tts-stream: /nowhere: No such file"),
        ([" ", "-o", "-"], 2, "nothing to speak"),
    ],
)
def test_a_failure_says_why_and_has_a_status(server, arguments, status, words):
    done = run(server[0], *arguments, PATH="/nowhere")
    assert done.returncode == status
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_what_breaks_off_is_no_whole_file(tmp_path):
    path = tmp_path / "speech.mp3"
    with running(fail_at=5, frame_s=0.05, error=StageFailed("talker", "broken")) as (url, _):
        done = run(url, "Hello.", "-o", path)
    assert done.returncode == 4
    assert b"broke off" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["speech.mp3.part"]


def run_answered(answer, *arguments):
    """The command on a server that gives this one answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = run(f"http://127.0.0.1:{listening.getsockname()[1]}", *arguments)
        thread.join()
    return done


def test_a_body_of_a_stated_length_that_ends_early_is_no_whole_file(tmp_path):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500)
    done = run_answered(answer, "Hi.", "-o", tmp_path / "a.mp3")
    assert done.returncode == 4, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp3.part"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"<html>", 1, "answered with no JSON"),
        (b'{"models":[]}', 1, "answered with no list"),
        (b"[]", 1, "answered with no list"),
        (b'{"data":[' + b" " * 100, 4, "broke off"),
    ],
)
def test_an_answer_that_is_no_list_is_told_of(body, status, words):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    length = len(body) + (500 if status == 4 else 0)
    done = run_answered(head % length + body, "--models")
    assert (done.returncode, b"Traceback" in done.stderr) == (status, False), done.stderr
    assert words in done.stderr.decode()


def test_a_busy_server_is_asked_again(tmp_path):
    class Busy:
        times = 2

        async def __call__(self, seconds):
            self.times -= 1
            if self.times >= 0:
                raise Overloaded("full", retry_after_s=0.01)

    busy = Busy()
    with running(sleep=busy) as (url, _):
        assert run(url, "Hello.", "-o", tmp_path / "a.wav").returncode == 0
        busy.times = 3
        done = run(url, "Hello.", "-o", tmp_path / "b.wav")
    assert done.returncode == 1
    assert b"full" in done.stderr


def test_ctrl_c_stops_player_and_server(player):
    folder, heard = player
    with running(num_frames=2000, frame_s=0.02) as (url, service):
        env = environment(url, PATH=f"{folder}:{os.environ['PATH']}", HEARD=str(heard))
        process = subprocess.Popen(
            [*COMMAND, "Hello."],
            env=env,
            stderr=subprocess.PIPE,
            # Whoever runs the tests may ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        wait_until(lambda: heard.exists() and heard.stat().st_size > 0)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        assert b"Traceback" not in words
        wait_until(lambda: service.idle)
