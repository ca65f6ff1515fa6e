"""Processes started for a measurement, without an installation, and how they end."""

import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]


def say(text: str) -> None:
    print(text, flush=True)


def search_path() -> str:
    """PYTHONPATH for a child: the one of this process, with the repository first.

    Absolute, because Ray starts its processes in folders of their own.
    """
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join([str(REPOSITORY), *(str(Path(path).resolve()) for path in given)])


def start_server(
    command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path | None = None
) -> "subprocess.Popen[bytes]":
    """Start a server in a session of its own, all that it prints in `log`.

    It keeps byte code whatever `env` says: where pip has installed everything there is some, so a
    second start finds that of the first.
    """
    env = {name: value for name, value in env.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_server(
    process: "subprocess.Popen[bytes]", left_of_it: Callable[[], list[int]], grace_s: float
) -> None:
    """Interrupt a server, then kill what `left_of_it` still finds.

    Args:
        process: what `start_server` returned.
        left_of_it: the ids of its living processes.
        grace_s: for it to end by itself.
    """
    interrupt(process, grace_s)
    kill_left(left_of_it)
    process.wait(10)


def interrupt(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """End a server as Ctrl-C does; what is not gone within `grace_s` is killed."""
    began_s = time.monotonic()
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            say(f"it did not end within {grace_s:.0f} s")
            process.kill()
            process.wait(10)
    say(f"server stopped in {time.monotonic() - began_s:.1f} s")


def kill_left(left_of_it: Callable[[], list[int]]) -> None:
    # More than once: what is killed first may still have been starting others.
    for _ in range(3):
        left = left_of_it()
        if not left:
            return
        say(f"killing {len(left)} processes that are left")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(1.0)


def write_checkpoint(folder: Path, size: str, device: str, variant: str = "custom_voice") -> None:
    """Write a random checkpoint that never ends by itself, in a process of its own.

    Who has once used the GPU keeps a part of its memory, and this process lives on.
    """
    began = time.monotonic()
    options = {"--size": size, "--variant": variant, "--eos": "unreachable"}
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
