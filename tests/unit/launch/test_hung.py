"""Which event loops stand still, of real processes in each state that one may be in."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.launch.keeper.hung import LOOPS, Alone, Loops
from serve_app.launch.keeper.proxies import MARK
from tests.waiting import wait_until

LOOK_S = 0.05
# Three seconds, three times what an event loop is idle for.
LOOKS = 60
# An ingress: its event loop does something every second. What it does then is asked for.
PROGRAM = """
import asyncio, hashlib, os, sys, threading, time
from pathlib import Path

def busy(_=None):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(1000))

def native():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # without the interpreter's lock

def threads():
    for _ in range(4):
        threading.Thread(target=busy, daemon=True).start()

def hang():
    lock = threading.Lock()
    with lock:
        lock.acquire()

def idle(): ...

async def main():
    # Others of the process do something all the while, as Ray's do.
    threading.Thread(target=lambda: [time.sleep(0.1) for _ in range(600)], daemon=True).start()
    (Path(sys.argv[1]) / str(os.getpid())).write_text(str(threading.get_native_id()))
    print("serving", flush=True)
    await asyncio.sleep(0.5)
    globals()[sys.argv[2]]()
    while True:
        await asyncio.sleep(1)

asyncio.run(main())
"""


@contextmanager
def ingress(folder: Path, does: str) -> Iterator[subprocess.Popen[bytes]]:
    loops = folder / LOOPS
    loops.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(loops), does], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"serving\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_that_hangs_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    look = Loops(tmp_path, said.append, LOOKS)
    with ingress(tmp_path, "hang") as process:
        began_s = time.monotonic()

        def ended() -> bool:
            look()
            return process.poll() is not None

        wait_until(ended, within_s=60, every_s=LOOK_S)
        assert time.monotonic() - began_s > LOOKS * LOOK_S
        assert process.returncode == -signal.SIGKILL
        assert said == [f"process {process.pid} hangs and is killed: its event loop stands still"]
        look()
        assert not [*(tmp_path / LOOPS).iterdir()]


@pytest.mark.parametrize("does", ["idle", "busy", "native", "threads"])
def test_one_that_only_does_not_answer_lives(tmp_path: Path, does: str) -> None:
    said: list[str] = []
    look = Loops(tmp_path, said.append, LOOKS)
    with ingress(tmp_path, does) as process:
        for _ in range(3 * LOOKS):
            look()
            time.sleep(LOOK_S)
        assert process.poll() is None
    assert not said


def test_one_that_is_stopped_is_continued(tmp_path: Path) -> None:
    said: list[str] = []
    look = Loops(tmp_path, said.append, LOOKS)
    with ingress(tmp_path, "idle") as process:
        look()
        os.kill(process.pid, signal.SIGSTOP)

        def is_running() -> bool:
            look()
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return bool(said) and state != "T"

        wait_until(is_running, every_s=LOOK_S)
        assert process.poll() is None
    assert said == [f"process {process.pid} was stopped and is continued"]


def stopped_process(name: str, mark: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [name, "-c", "import time; time.sleep(60)"],
        executable=sys.executable,
        env={**os.environ, MARK: str(mark)},
    )
    os.kill(process.pid, signal.SIGSTOP)
    return process


def test_what_nothing_replaces_is_continued_and_a_stage_is_not(tmp_path: Path) -> None:
    said: list[str] = []
    look = Alone(tmp_path, said.append)
    names = ("ray::ServeController", "ray::HAProxyManager", "/ray/gcs_server", "/raylet/raylet")
    ours = [stopped_process(name, tmp_path) for name in names]
    stage = stopped_process("ray::ServeReplica:tts:Talker", tmp_path)
    others = stopped_process("ray::ServeController", tmp_path / "other")
    try:

        def continued() -> bool:
            look()
            return len(said) >= len(ours)

        wait_until(continued, every_s=LOOK_S)
        look()
        assert {*said} == {f"process {one.pid} was stopped and is continued" for one in ours}
        for one in (stage, others):
            assert "State:\tT" in Path(f"/proc/{one.pid}/status").read_text()
    finally:
        for one in (*ours, stage, others):
            one.kill()
            one.wait()
