"""Python processes of this repository, started without an installation."""

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]


def say(text: str) -> None:
    print(text, flush=True)


def search_path() -> str:
    """PYTHONPATH for a child: the one of this process, with the repository first.

    Absolute, because Ray starts its processes in folders of their own.
    """
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join([str(REPOSITORY), *(str(Path(path).resolve()) for path in given)])


def write_checkpoint(folder: Path, size: str, device: str) -> None:
    """Write a random checkpoint that never ends by itself, in a process of its own.

    Who has once used the GPU keeps a part of its memory, and this process lives on.
    """
    began = time.monotonic()
    options = {"--size": size, "--variant": "custom_voice", "--eos": "unreachable"}
    arguments = [word for option in {**options, "--device": device}.items() for word in option]
    subprocess.run(
        [sys.executable, "-m", "serve_app.models.random_checkpoint", str(folder), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": search_path()},
        check=True,
    )
    say(f"wrote {folder}, size {size}, in {time.monotonic() - began:.1f} s")


def unpacked(wheels: Path, folder: Path) -> Path:
    """A folder to import from: `wheels` itself where it holds packages, not wheels."""
    files = sorted(wheels.glob("*.whl"))
    if not files:
        return wheels
    for file in files:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    return folder
