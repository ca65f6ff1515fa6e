"""Folders into which clients are installed as their registries have them, made once."""

import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from load_tests.servers.child import say

DEFAULT: Final = Path.home() / ".cache" / "tts-clients"


def python_environment(
    folder: Path,
    packages: Sequence[str],
    pythons: Sequence[str],
    newer_than: tuple[int, int] = (3, 10),
) -> Path | None:
    """The interpreter of a virtual environment with `packages`, made where there is none; None
    where no interpreter here is new enough.
    """
    python = folder / "bin" / "python"
    if _is_made(folder, packages):
        return python
    base = next((one for one in pythons if _version(one) > newer_than), None)
    if base is None:
        return None
    say(f"{folder.name}: installing {', '.join(packages)} with {base}")
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    _note_made(folder, packages)
    return python


def node_environment(folder: Path, packages: Sequence[str]) -> Path | None:
    """A folder whose `node_modules` has `packages`; None where this machine has no node or npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return None
    if _is_made(folder, packages):
        return folder
    say(f"{folder.name}: installing {', '.join(packages)}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}')
    options = ("--no-audit", "--no-fund", "--loglevel=error")
    subprocess.run(["npm", "install", *options, *packages], cwd=folder, check=True)
    _note_made(folder, packages)
    return folder


def installed(python: Path, package: str) -> str:
    """The version of a package in a virtual environment, "" where it has none."""
    folders = (python.parents[1] / "lib").glob("python*/site-packages")
    found = metadata.distributions(name=package.split("[")[0], path=[str(f) for f in folders])
    return next((one.version for one in found), "")


def _is_made(folder: Path, packages: Sequence[str]) -> bool:
    """Whether a folder has what is asked for now; what was begun and not finished does not."""
    note = folder / "installed"
    return note.exists() and note.read_text() == "\n".join(packages)


def _note_made(folder: Path, packages: Sequence[str]) -> None:
    (folder / "installed").write_text("\n".join(packages))


def _version(python: str) -> tuple[int, int]:
    ask = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    if done.returncode:
        return (0, 0)
    major, minor = map(int, done.stdout.split())
    return major, minor
