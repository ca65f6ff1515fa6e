"""What is left of a launcher that had no time to tidy up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.launch.keeper.proxies import MARK, PROGRAM, end_all
from tests.waiting import wait_until

# A launcher with an HAProxy of its own and something else, which it starts as Ray does: deaf to
# signals, in a session of its own, and going on for as long as nobody kills it.
LAUNCHER = """
import signal, subprocess, sys, time
from pathlib import Path
from serve_app.launch.keeper.keeper import kept
folder = Path(sys.argv[1])
with kept(folder, own_cluster=True):
    for arguments in (["-f", f"{folder}/node/haproxy.cfg"], []):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *arguments],
                         start_new_session=True)
    print("started", flush=True)
    if sys.argv[2] == "stay":
        time.sleep(60)
"""


def left_of(folder: Path) -> list[str]:
    """The command lines of the processes that know of `folder`."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(process / name).read_bytes() for name in ("environ", "cmdline")]
        except OSError:
            continue
        if any(str(folder).encode() in text for text in texts):
            found.append(texts[1].replace(b"\0", b" ").decode())
    return found


@contextmanager
def launcher(folder: Path, then: str = "stay") -> Iterator[subprocess.Popen[bytes]]:
    (folder / PROGRAM).touch()
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(folder), then],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"started\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        end_all(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_whole_group_leaves_nothing(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with launcher(folder) as process:
        os.killpg(process.pid, number)
        wait_until(lambda: not left_of(folder) and not folder.exists())


def test_a_keeper_that_is_told_to_end_with_all_others_stays(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with launcher(folder) as process:
        keeper = next(word for word in children(process.pid) if "keeper" in word[1])[0]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(keeper, number)
        time.sleep(2)
        assert len(left_of(folder)) > 2
        process.kill()
        wait_until(lambda: not left_of(folder) and not folder.exists())


def test_a_launcher_that_ends_by_itself_has_left_nothing_once_it_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with launcher(folder, "leave") as process:
        assert process.wait(30) == 0
        assert not left_of(folder)


def test_what_another_server_has_started_stays(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "ours-too"
    started = [
        subprocess.Popen([sys.executable, "-c", "input()", "-db", "-f", f"{folder}/node/x.cfg"],
                         stdin=subprocess.PIPE, env={**os.environ, MARK: str(mark)})
        for folder, mark in ((ours, ""), (others, others), (tmp_path, ours))
    ]  # fmt: skip
    try:
        end_all(ours)
        assert started[0].wait(10) == -signal.SIGKILL
        assert started[2].wait(10) == -signal.SIGKILL
        assert started[1].poll() is None
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_what_shows_its_mark_a_moment_later_is_found(tmp_path: Path) -> None:
    # As any process that begins to run another program, for as long as others take its turn.
    later = f"sleep 0.2; exec env {MARK}={tmp_path} sleep 60"
    process = subprocess.Popen(["/bin/sh", "-c", later], env={"PATH": os.environ["PATH"]})
    try:
        end_all(tmp_path)
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def children(parent: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            command = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append((int(process.name), command))
    return found
