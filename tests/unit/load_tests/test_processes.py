"""Processes of a server, found by their titles among real ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from load_tests.servers.processes import (
    ServerProcess,
    is_alive,
    kind_of,
    processes,
    signal_to,
    spent,
    usage,
)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ray::ServeReplica:tts:Talker", "talker"),
        ("ray::ServeReplica:tts:CodePredictor.handle_request_streaming", "code predictor"),
        ("ray::ServeReplica:tts:SpeechDecoder ", "speech decoder"),
        ("ray::ServeReplica:tts:Fused", "fused"),
        ("/venv/bin/python -m serve_app.models.fused.process 27 ", "fused child"),
        ("ray::ServeReplica:tts:Ingress", "ingress"),
        ("ray::ServeReplica:other:Talker2", None),
        ("ray::ServeController", "controller"),
        ("ray::ProxyActor.run", "proxy"),
        ("/usr/lib/haproxy -f x", "haproxy"),
        ("/venv/ray/core/src/ray/raylet/raylet --a=b ", "raylet"),
        ("/venv/bin/python -m serve_app /tmp/serve.yaml ", "launcher"),
        ("/venv/bin/python -m serve_app.models.random_checkpoint out", None),
        ("ray::IDLE", None),
    ],
)
def test_a_process_is_known_by_its_title_or_command(command: str, kind: str | None) -> None:
    assert kind_of(command) == kind


@pytest.fixture
def talker() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["ray::ServeReplica:tts:Talker", "300"], executable="/bin/sleep")
    # It has its title a moment after it was started.
    deadline_s = time.monotonic() + 30
    while not list(processes([process.pid])) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_a_process_is_struck_as_itself_and_not_by_its_number(
    talker: "subprocess.Popen[bytes]",
) -> None:
    (found,) = processes([talker.pid, os.getpid()])
    assert (found.pid, found.kind) == (talker.pid, "talker")
    later = ServerProcess(found.pid, found.kind, found.started + 1)
    assert not signal_to(later, signal.SIGKILL)
    assert is_alive(found)
    assert signal_to(found, signal.SIGSTOP)
    assert is_alive(found)
    deadline_s = time.monotonic() + 30
    while not next(processes([talker.pid])).stopped and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert next(processes([talker.pid])).stopped
    assert signal_to(found, signal.SIGKILL)
    deadline_s = time.monotonic() + 30
    while is_alive(found) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    # A zombie until its parent asks: not alive.
    assert not is_alive(found)
    assert not list(processes([talker.pid]))
    talker.wait()
    assert not signal_to(found, signal.SIGKILL)


def test_what_a_process_takes_is_read() -> None:
    used = usage(os.getpid())
    assert used is not None
    assert used.rss_mib > 1
    assert used.descriptors >= 3
    assert used.threads >= 1
    assert usage(1 << 22) is None


def test_what_a_process_has_spent_counts_its_children_and_says_what_it_runs() -> None:
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        try:
            end_s = time.monotonic() + 60
            # Just begun it has no command line yet, and is none of them.
            while not (found := list(spent([process.pid]))) or found[0].cpu_s < 0.3:
                assert time.monotonic() < end_s
                time.sleep(0.05)
        finally:
            process.kill()
    assert found[0].pid == process.pid
    assert list(spent([process.pid])) == []
    (own,) = spent([os.getpid()])
    assert own.cpu_s > 0
    assert own.kind
