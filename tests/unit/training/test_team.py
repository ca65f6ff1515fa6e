"""Processes that train one model together."""

import os
import socket
import subprocess
import sys

import pytest

from training.team import Team

_MEMBER = """
import torch
from training.team import Team

team = Team(every=3)
weights = [torch.full((2, 2), float(team.rank)), torch.full((1,), 10.0 * team.rank)]
team.average(weights)
own = [torch.full((2,), 7.0 + team.rank)]
team.share(own)
print([weight.flatten().tolist() for weight in weights + own], team.any(team.rank == 1), team.leads)
"""


def test_two_take_the_mean_of_their_weights_or_the_leaders_and_agree_to_stop() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    members = [
        subprocess.Popen(
            [sys.executable, "-c", _MEMBER],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [member.communicate(timeout=240)[0].strip() for member in members]
    mean = "[[0.5, 0.5, 0.5, 0.5], [5.0], [7.0, 7.0]] True"
    assert said == [f"{mean} True", f"{mean} False"]


def test_one_alone_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = Team(every=1)
    assert team.leads
    assert not team.meets(5)
    assert team.any(True)
    assert not team.any(False)
