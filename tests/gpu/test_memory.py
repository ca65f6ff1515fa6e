"""`profile: auto` on a GPU that is made as small as a card: what it takes beside the estimate.

`TTS_GPU_CARDS` names size and GiB ("0.6b:8,1.7b:12"); each is a process of its own and takes as
long as a start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CARDS = os.environ.get("TTS_GPU_CARDS", "0.6b:8,0.6b:16").split(",")
TIMEOUT_S = 300
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.mark.parametrize("card", CARDS)
def test_what_a_preset_takes_is_what_was_estimated(
    card: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    size, gib = card.split(":")
    if size not in folders:
        folders[size] = tmp_path_factory.mktemp("full") / size
        command = [sys.executable, "-m", "serve_app.models.random_checkpoint", str(folders[size])]
        options = ["--size", size, "--eos", "unreachable", "--device", "cuda"]
        subprocess.run([*command, *options], cwd=REPOSITORY, env=ENVIRONMENT, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.memory_probe", str(folders[size]), gib],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    print(card, said)
    assert said["took_mib"] <= 1.02 * said["estimate_mib"]
    # An estimate that is far too large would keep streams off a card that carries them.
    assert said["took_mib"] >= 0.7 * said["estimate_mib"]
