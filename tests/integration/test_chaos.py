"""The chaos test against the application around fakes, with processes that stand for replicas."""

import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from load_tests.chaos.__main__ import save_to, watched
from load_tests.chaos.record import Record
from load_tests.chaos.settings import parse
from load_tests.loops.runner import run_loop
from load_tests.servers.processes import ServerProcess, processes
from serve_app.errors import StageFailed
from tests.integration.test_load_client import Service, served


@dataclass
class Replicas:
    """Two processes that call themselves talkers; one that dies is replaced, as Serve does."""

    children: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    replaced: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self) -> Sequence[ServerProcess]:
        """Called by the killer and by the watch, each on a thread."""
        with self.lock:
            while sum(child.poll() is None for child in self.children) < 2:
                self.replaced += len(self.children) >= 2
                title = ["ray::ServeReplica:tts:Talker", "600"]
                self.children.append(subprocess.Popen(title, executable="/bin/sleep"))
        return list(processes(child.pid for child in self.children))

    @contextmanager
    def kept(self) -> Iterator["Replicas"]:
        try:
            yield self
        finally:
            for child in self.children:
                child.kill()
                child.wait()


def run(tmp_path: Path, service: Service, *options: str) -> tuple[Record, Replicas]:
    small = ["--phase-s", "1", "--streams", "3", "--burst", "4", "--pause", "0.1"]
    small += [
        "--requests",
        "3",
        "--voice",
        "vivian",
        "--frames",
        "5:12",
        "--timeout-s",
        "30",
        "--out",
        str(tmp_path),
    ]
    args = parse([*small, "--kinds", "talker", "--every", "0.2", "--overload", "3", *options])
    facts: dict[str, Any] = {
        "gpus": [],
        "cpus": 2,
        "load_average": 0.0,
        "versions": {},
        "commit": "abc",
        "command": "python -m load_tests.chaos",
    }
    with served(service.app) as url, Replicas().kept() as replicas:
        replicas.find()
        saved = save_to(tmp_path, facts)
        record = run_loop(lambda: watched(args, url, replicas.find, saved))
    return record, replicas


def test_every_load_runs_beside_the_kills_and_every_stream_is_compared(tmp_path: Path) -> None:
    # A busy machine may begin no request within a second.
    options = ("--kills", "1", "--stops", "1", "--phase-s", "2.5", "--clients", "2")
    record, replicas = run(tmp_path, Service(frame_s=0.01), *options)
    result = json.loads((tmp_path / "report.json").read_text())
    phases = {phase["phase"]: phase for phase in result["phases"]}
    assert list(phases) == [
        *("cold", "alone", "full load"),
        *("steady", "burst", "step", "overload 3x", "slow", "vanishing"),
    ]
    assert not record.is_bad, result["worst"]
    assert all(phase["requests"] for phase in phases.values())
    assert phases["cold"]["fates"]["complete"] == 4
    assert result["compared"] >= sum(phase["fates"]["complete"] for phase in phases.values())
    assert [strike["healed_s"] is not None for strike in result["strikes"]] == [True, True]
    assert replicas.replaced == 1
    assert result["recoveries"][0]["seconds"] is not None
    assert "# Chaos" in (tmp_path / "report.md").read_text()


def test_streams_that_break_are_counted_and_fail_the_run(tmp_path: Path) -> None:
    service = Service(frame_s=0.005)
    service.talker = type(service.talker)(
        num_frames=100, chunk_frames=(1,), frame_s=0.005, fail_at=6, error=StageFailed("gone")
    )
    record, _ = run(tmp_path, service, "--kills", "0", "--stops", "0", "--loads", "steady")
    assert record.is_bad
    result = json.loads((tmp_path / "report.json").read_text())
    assert {entry["fate"] for entry in result["worst"]} == {"broken"}


@pytest.mark.parametrize("options", [["--soak", "--minutes", "0.1", "--share", "0.7"]])
def test_a_soak_is_one_load_for_its_time(tmp_path: Path, options: list[str]) -> None:
    record, _ = run(tmp_path, Service(frame_s=0.01), "--kills", "1", "--stops", "0", *options)
    assert not record.is_bad
    result = json.loads((tmp_path / "report.json").read_text())
    assert "soak at 70 %" in [phase["phase"] for phase in result["phases"]]
    assert result["usage"]["talker"]["processes"][0] == 2
