"""The package as others get it: built to a wheel, installed elsewhere, used without a checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


def run(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its commands, and nothing else."""
    # Setuptools builds within the sources, and takes what an earlier build left there.
    sources = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, sources)
    for name in ("serve_app", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, sources / name, symlinks=True, ignore=ignored)
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    wheels = sources / "wheels"
    offline = ("--no-deps", "--no-index")
    run(*pip, "wheel", ".", "--no-build-isolation", *offline, "-w", str(wheels), cwd=sources)
    (wheel,) = wheels.glob("qwen3_tts_serve-*.whl")
    run(*pip, "install", *offline, "--no-compile", "--target", str(folder), str(wheel), cwd=sources)
    return folder


def command(installed: Path, name: str, *arguments: str, cwd: Path) -> str:
    program = str(installed / "bin" / name)
    return run(sys.executable, program, *arguments, cwd=cwd, PYTHONPATH=str(installed))


def test_it_brings_commands(installed: Path, tmp_path: Path) -> None:
    from serve_app import __version__

    for name in ("tts-stream", "qwen3-tts-serve"):
        assert command(installed, name, "--version", cwd=tmp_path) == f"{name} {__version__}\n"
        assert command(installed, name, "--help", cwd=tmp_path).startswith(f"usage: {name}")


def test_it_says_what_the_machine_can_run(installed: Path, tmp_path: Path) -> None:
    program = installed / "bin" / "qwen3-tts-serve"
    env = {**os.environ, "PYTHONPATH": str(installed)}
    asked = [sys.executable, str(program), "check", "--json"]
    # Its status depends on the machine.
    done = subprocess.run(asked, cwd=tmp_path, env=env, capture_output=True, timeout=300)
    assert json.loads(done.stdout), done.stderr


def test_it_brings_configs_and_the_playground(installed: Path, tmp_path: Path) -> None:
    program = """
import serve_app
from serve_app.http.web.routes import STATIC, read_assets
from serve_app.launch.configs import located
from serve_app.serve_config import load

print(serve_app.__file__)
for name in ("configs/serve.yaml", "serve.fused.yaml"):
    print(load(located(name))["applications"][0]["import_path"])
print(sorted(read_assets(STATIC)))
"""
    told = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert Path(told[0]).is_relative_to(installed)
    assert told[1:3] == ["serve_app.app:build"] * 2
    assert "'index.html'" in told[3]
    assert "'js/main.js'" in told[3]


def test_it_brings_all_of_the_package_and_nothing_else(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(p.relative_to(folder)) for p in found if "__pycache__" not in p.parts}

    here = files(REPOSITORY / "serve_app") | {
        f"configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.yaml")
    }
    assert files(installed / "serve_app") == here
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"bin", "serve_app"}
