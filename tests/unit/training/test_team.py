"""Processes that train one model together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training.shapes import TEXTS
from training.pipeline import CHECKPOINT, PLAN
from training.plan import Planned, write
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


_RECIPE = """
import sys
from pathlib import Path
from training.pipeline import Minutes, Recipe

minutes = Minutes(speak=1.0, codec=0.0, decoder=0.0, talker=0.0)
recipe = Recipe(Path(sys.argv[1]), minutes, "cpu", 600.0)

def speak(teacher, voices):
    if recipe.team.leads:
        recipe._note("speak", 60.0)

recipe.speak = speak
print(recipe.all(Path("teacher"), Path("voices")))
"""


def _said(program: str, *arguments: str) -> list[str]:
    """What two processes of one team print at the end."""
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
            [sys.executable, "-c", program, *arguments],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [member.communicate(timeout=240)[0].strip() for member in members]


def test_two_take_the_mean_of_their_weights_or_the_leaders_and_agree_to_stop() -> None:
    said = _said(_MEMBER)
    mean = "[[0.5, 0.5, 0.5, 0.5], [5.0], [7.0, 7.0]] True"
    assert said == [f"{mean} True", f"{mean} False"]


def test_two_go_through_the_recipe_by_the_leaders_clock(tmp_path: Path) -> None:
    plan = [Planned(i, "heart", (50, 60), text) for i, text in enumerate(TEXTS)]
    write(plan, tmp_path / PLAN)
    said = _said(_RECIPE, str(tmp_path))
    assert [lines.splitlines()[-1:] for lines in said] == [["True"], ["True"]]
    assert (tmp_path / CHECKPOINT / "speech_tokenizer/model.safetensors").exists()


def test_one_alone_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = Team(every=1)
    assert team.leads
    assert not team.meets(5)
    assert team.any(True)
    assert not team.any(False)
