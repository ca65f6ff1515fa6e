"""Who has a standby, and that none outlives its owner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_app.launch.ahead import gpus, with_standbys
from serve_app.models.fused import standby
from tests.waiting import wait_until

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
    ("given", "own_cluster"),
    [
        (config(args={"placement": "split"}), True),
        # Its replicas may be on other machines.
        (config(), False),
        (config(args={"device": "cpu"}), False),
    ],
)
def test_a_standby_that_nobody_would_take_is_not_started(
    given: dict, own_cluster: bool, tmp_path: Path
) -> None:
    folder, devices = tmp_path / "standby", tmp_path / "dev"
    devices.mkdir()
    assert with_standbys(given, folder, own_cluster=own_cluster, devices=devices) == given
    assert not folder.exists()


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 4), ("", 0), ("2", 1), ("1,3", 2), ("0,1,2,3,4,5", 4)]
)
def test_gpus_that_are_hidden_do_not_count(
    visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for Ray: several models on what is left would wait for ever for a whole one each."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus(tmp_path) == count


def test_without_a_gpu_the_first_replica_has_one(tmp_path: Path) -> None:
    """It waits with what a process without a GPU has in its environment."""
    folder, devices = tmp_path / "standby", tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidia0").touch()  # not to be used
    given = config(args={"device": "cpu"}, num_replicas=2)
    changed = with_standbys(given, folder, own_cluster=True, devices=devices)
    variables = changed["controller_options"]["runtime_env"]["env_vars"]
    assert variables == {"TTS_STANDBYS": str(folder)}
    (path,) = wait_until(lambda: list(folder.glob("*.sock")), within_s=60)
    pid = int(path.stem)
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_NUM_THREADS=1" in environment
        assert b"CUDA_VISIBLE_DEVICES=" in environment
    finally:
        os.kill(pid, signal.SIGKILL)
