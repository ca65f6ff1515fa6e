"""A text of 200,000 characters: paused, its server killed and restarted, and nothing is missing."""

import asyncio
import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.integration.http.jobs.book import FIELDS, TEXT, UNIT_SAMPLES, expected

ROOT = Path(__file__).parents[4]
PATH = "/v1/audio/speech/long"
LIMIT_S = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(folder):
    """A server in a process of its own, killed at the end: nothing is wound up."""
    port = free_port()
    command = [sys.executable, "-m", "tests.integration.http.jobs.book", str(folder), str(port)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            deadline = time.monotonic() + LIMIT_S
            while True:
                try:
                    http.get("/livez")
                    break
                except httpx2.TransportError:
                    assert time.monotonic() < deadline
                    assert process.poll() is None
                    time.sleep(0.05)
            yield http, process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def status_when(http, job_id, condition):
    deadline = time.monotonic() + LIMIT_S
    while True:
        status = http.get(f"{PATH}/{job_id}").json()
        if condition(status):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.02)


def done(status):
    return status["progress"]["units_done"]


def most_bytes(process):
    """The most memory that a process has had."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def in_one_go():
    """Length and digest of the samples of the text as one stream."""
    digest, size = hashlib.sha256(), 0

    async def main():
        nonlocal size
        async for chunk in expected():
            digest.update(chunk.samples.tobytes())
            size += chunk.samples.nbytes

    asyncio.run(main())
    return size, digest.hexdigest()


@pytest.fixture(scope="module")
def book():
    return in_one_go()


def test_a_book_is_whole_although_it_was_paused_and_its_server_killed(tmp_path, book):
    num_bytes, digest = book
    with server(tmp_path) as (http, _):
        response = http.post(
            PATH, params=FIELDS, content=TEXT.encode(), headers={"content-type": "text/plain"}
        )
        assert response.status_code == 202
        job_id = response.json()["id"]
        total = response.json()["progress"]["units_total"]
        assert response.json()["input_characters"] == len(TEXT) == 200_000
        assert total > 150
        status_when(http, job_id, lambda status: done(status) > 10)
        assert http.put(f"{PATH}/{job_id}/pause").json()["status"] == "paused"
        time.sleep(1.0)
        paused = http.get(f"{PATH}/{job_id}").json()
        time.sleep(0.3)
        assert http.get(f"{PATH}/{job_id}").json() == paused
        assert http.get(f"{PATH}/{job_id}/download").status_code == 409
        http.put(f"{PATH}/{job_id}/resume")
        status_when(http, job_id, lambda status: done(status) > done(paused) + 20)

    with server(tmp_path) as (http, process):
        before = http.get(f"{PATH}/{job_id}").json()
        assert done(paused) + 20 < done(before) < total
        assert before["status"] == "processing"
        at_first = most_bytes(process)
        states = [
            json.loads(line.removeprefix("data: "))
            for line in http.get(f"{PATH}/{job_id}/sse").text.splitlines()
            if line.startswith("data: ")
        ]
        counts = [done(state) for state in states]
        assert counts == sorted(counts)
        assert (states[-1]["type"], counts[-1]) == ("speech.job.completed", total)
        # The audio is 80 MB.
        assert num_bytes > 70_000_000
        assert most_bytes(process) - at_first < 40_000_000

        url = states[-1]["download_url"]
        whole = http.get(url)
        assert whole.headers["content-type"] == "audio/wav"
        data = whole.content[44 : 44 + num_bytes]
        assert int.from_bytes(whole.content[40:44], "little") == num_bytes
        assert hashlib.sha256(data).hexdigest() == digest
        part = http.get(url, headers={"Range": "bytes=1000000-1000999"})
        assert part.status_code == 206
        assert part.content == whole.content[1000000:1001000]
        assert http.head(url).headers["content-length"] == str(len(whole.content))


def test_every_sample_of_every_unit_is_in_the_book(book):
    """The pauses between units come on top of the audio."""
    num_bytes, _ = book
    assert num_bytes > 150 * 2 * UNIT_SAMPLES
