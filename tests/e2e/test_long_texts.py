"""A long text through Ctrl-C and another start of the server over the same folder."""

import os
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from tests.e2e.conftest import (
    CONFIGS,
    REPOSITORY,
    STOP_TIMEOUT_S,
    Server,
    assert_over,
    run_server,
)
from tests.e2e.open_streams import ENDLESS_FRAMES, Open, pcm
from tests.waiting import wait_until

# Most of a minute of speech, in units of a few seconds.
TEXT = " ".join(
    f"This is sentence number {n}, which a listener would have to wait for." for n in range(1, 13)
)
UNIT_FRAMES = 100
JOB = {"model": "tts-1", "input": TEXT, "voice": "emma", "seed": 11, "response_format": "pcm"}
PATH = "/v1/audio/speech/long"
MADE_WITHIN_S = 240.0
# Samples are rounded to 16 bits on both sides, of sums taken in another order: what is made beside
# a unit is not the same both times.
TOLERANCE_LSB = 2


def config_of(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((REPOSITORY / CONFIGS["fused"]).read_text())
    jobs = {"directory": str(folder / "jobs"), "max_unit_frames": UNIT_FRAMES}
    config["applications"][0]["args"]["ingress"] = {"jobs": jobs}
    return config


def begun(server: Server) -> str:
    answer = httpx.post(f"{server.url}{PATH}", json=JOB, timeout=30)
    return answer.raise_for_status().json()["id"]


def shown(server: Server, job: str) -> dict[str, Any]:
    return httpx.get(f"{server.url}{PATH}/{job}", timeout=30).raise_for_status().json()


def heard(server: Server, job: str) -> np.ndarray:
    """int32 [N]: the audio of a job, as soon as all of it is made."""

    def over() -> dict[str, Any] | None:
        found = shown(server, job)
        return found if found["status"] in ("completed", "failed") else None

    found = wait_until(over, MADE_WITHIN_S, every_s=0.2)
    assert found["status"] == "completed", found["error"]
    audio = httpx.get(f"{server.url}{PATH}/{job}/download", timeout=30)
    return np.frombuffer(audio.raise_for_status().content, "<i2").astype(np.int32)


def made_at(folder: Path, job: str) -> dict[str, int]:
    """When each unit of a job was made, in ns, by its file."""
    files = (folder / "jobs" / job).glob("units/*")
    return {file.name: file.stat().st_mtime_ns for file in files}


def end_at_once(server: Server) -> None:
    """A second Ctrl-C ends the server with what it speaks, a first one does not."""
    with Open(server.url, ENDLESS_FRAMES, pcm) as streams:
        os.killpg(server.process.pid, signal.SIGINT)
        wait_until(lambda: httpx.get(f"{server.url}/ready", timeout=5).status_code == 503)
        time.sleep(0.5)  # two signals at nearly the same time are one
        assert server.process.is_running()
        os.killpg(server.process.pid, signal.SIGINT)
        assert_over(server)
        (speech,) = streams.heard().values()
    assert speech.audio
    assert not speech.is_whole


def test_a_long_text_goes_on_by_itself_after_ctrl_c_and_another_start(
    request: pytest.FixtureRequest,
) -> None:
    with tempfile.TemporaryDirectory(prefix="tts-long-", dir="/tmp") as name:
        folder = Path(name)
        config = folder / "serve.yaml"
        config.write_text(yaml.safe_dump(config_of(folder)))
        starts = [folder / "1", folder / "2"]
        for start in starts:
            start.mkdir()
        running = contextmanager(run_server)
        with running("fused", starts[0], request.config, config) as server:
            job = begun(server)
            wait_until(
                lambda: shown(server, job)["progress"]["units_done"] > 1,
                MADE_WITHIN_S,
                every_s=0.2,
            )
            # A terminal signals all of the launcher's group.
            os.killpg(server.process.pid, signal.SIGINT)
            assert server.process.wait(STOP_TIMEOUT_S) == 0
        before = made_at(folder, job)
        with running("fused", starts[1], request.config, config) as server:
            audio = heard(server, job)
            total = shown(server, job)["progress"]["units_total"]
            assert 1 < len(before) < total
            assert before.items() <= made_at(folder, job).items()  # none was made again
            undisturbed = heard(server, begun(server))
            end_at_once(server)
    assert audio.shape == undisturbed.shape
    assert np.abs(audio - undisturbed).max() <= TOLERANCE_LSB
