"""Who has a standby, and that none outlives its owner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_app.launch.ahead import with_standbys
from serve_app.models.fused import standby

OWNER = """
import os, sys
from serve_app.models.fused.standby import Taken
taken = Taken(int(sys.argv[1]))
print("has it", flush=True)
sys.stdin.read()
os._exit(1)
"""


def config(**fused) -> dict:
    args = {"placement": "fused", "device": "auto", **fused.pop("args", {})}
    return {
        "applications": [
            {
                "import_path": "serve_app.app:build",
                "args": args,
                "deployments": [{"name": "Fused", **fused}],
            }
        ]
    }


@pytest.mark.parametrize("stopped", [False, True])
def test_what_was_taken_ends_with_its_owner_in_whatever_state_both_are(stopped: bool) -> None:
    process = subprocess.Popen(["sleep", "600"])
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"has it\n"
        if stopped:
            process.send_signal(signal.SIGSTOP)
        owner.kill()
        assert process.wait(30) == -signal.SIGKILL
    finally:
        process.kill()
        owner.kill()
        owner.wait(10)


def test_a_process_that_has_ended_does_not_run(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    while standby.is_running(process.pid):  # a zombie until it is waited for
        time.sleep(0.01)
    process.wait(10)
    assert not standby.is_running(process.pid)
    assert standby.is_running(os.getpid())


def test_a_standby_that_is_gone_is_not_taken(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait(10)
    (tmp_path / f"{process.pid}.sock").touch()
    assert standby.take(tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        config(),
        config(args={"placement": "split"}),
        config(args={"device": "cpu"}),
    ],
)
def test_without_a_gpu_that_will_be_used_there_is_no_standby(given: dict, tmp_path: Path) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    if given["applications"][0]["args"] != config()["applications"][0]["args"]:
        (devices / "nvidia0").touch()
    assert with_standbys(given, tmp_path / "standby", devices) == given
    assert not (tmp_path / "standby").exists()
