"""The machine itself: cores, memory, disk, GPUs."""

import csv
import io
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from serve_app.check.finding import Finding
from serve_app.config import Environment

_GIB: Final = 1 << 30
# All processes of a server with the embedded checkpoint, on a CPU.
_LEAST_MEMORY_GIB: Final = 6
_LEAST_SHM_GIB: Final = 1
_LEAST_DISK_GIB: Final = 5
_LEAST_GPU_GIB: Final = 8
# Our kernels are compiled for these and newer; on others PyTorch's own take over.
_OWN_KERNELS_FROM: Final = 8.0
_QUERY: Final = ("name", "memory.total", "memory.free", "driver_version", "compute_cap")
_SMI_TIMEOUT_S: Final = 20


def machine(meminfo: Path = Path("/proc/meminfo"), shm: Path = Path("/dev/shm")) -> list[Finding]:
    """Cores, memory, shared memory, and room for what is downloaded and compiled."""
    cores = len(os.sched_getaffinity(0))
    found = [
        Finding("machine", "ok", f"{cores} cores")
        if cores >= 2
        else Finding("machine", "note", "1 core: stages take turns", "use 2 or more")
    ]
    free_gib = _free_memory_gib(meminfo)
    if free_gib is not None:
        enough = free_gib >= _LEAST_MEMORY_GIB
        found.append(
            Finding(
                "machine",
                "ok" if enough else "missing",
                f"{free_gib:.1f} GiB of memory free",
                "" if enough else f"free {_LEAST_MEMORY_GIB} GiB, or Ray kills replicas",
            )
        )
    if shm.is_dir():
        shm_gib = shutil.disk_usage(shm).free / _GIB
        enough = shm_gib >= _LEAST_SHM_GIB
        found.append(
            Finding(
                "machine",
                "ok" if enough else "note",
                f"{shm_gib:.1f} GiB of shared memory",
                "" if enough else "docker run --shm-size=2g; Ray is slower without",
            )
        )
    cache = Environment.read().cache
    there = next(path for path in (cache, *cache.parents) if path.exists())
    disk_gib = shutil.disk_usage(there).free / _GIB
    enough = disk_gib >= _LEAST_DISK_GIB
    found.append(
        Finding(
            "machine",
            "ok" if enough else "note",
            f"{disk_gib:.0f} GiB of disk free at {cache}",
            "" if enough else "XDG_CACHE_HOME and HF_HOME name another place",
        )
    )
    if not os.access(there, os.W_OK):
        remedy = "make it writable, or set XDG_CACHE_HOME and HF_HOME"
        says = f"{there} cannot be written to: nothing can be downloaded, and kernels are not kept"
        found.append(Finding("machine", "note", says, remedy))
    return found


def gpus(command: Sequence[str] = ("nvidia-smi",)) -> list[Finding]:
    """Each GPU; without any the server runs on the CPU."""
    if shutil.which(command[0]) is None:
        return [
            Finding(
                "gpu",
                "note",
                "no NVIDIA driver: the server runs on the CPU, for trying it out",
                "install the driver for a GPU, if there is one",
            )
        ]
    query = f"--query-gpu={','.join(_QUERY)}"
    try:
        done = subprocess.run(
            [*command, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_SMI_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        says = f"nvidia-smi fails: {type(error).__name__}"
        return [Finding("gpu", "missing", says, "the driver does not work: reinstall, or reboot")]
    rows = csv.reader(io.StringIO(done.stdout), skipinitialspace=True)
    found = [finding for row in rows if len(row) == len(_QUERY) for finding in _gpu(row)]
    return found or [Finding("gpu", "note", "a driver and no GPU: the server runs on the CPU")]


def cards(command: Sequence[str] = ("nvidia-smi",)) -> int:
    """How many GPUs of this machine a server may use."""
    try:
        done = subprocess.run(
            [*command, "--list-gpus"], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    visible = Environment.read().visible_gpus
    return there if visible is None else min(there, visible)


def _gpu(row: Sequence[str]) -> Iterator[Finding]:
    name, total, free, driver, capability = row
    total_gib, free_gib = float(total) / 1024, float(free) / 1024
    says = f"{name}: {free_gib:.0f} of {total_gib:.0f} GiB free, driver {driver}, {capability}"
    if free_gib < _LEAST_GPU_GIB:
        remedy = f"end what uses it: {_LEAST_GPU_GIB} GiB are needed for the small model"
        yield Finding("gpu", "missing", says, remedy)
    elif float(capability) < _OWN_KERNELS_FROM:
        yield Finding("gpu", "note", says, "older than the kernels here: expect it to be slower")
    else:
        yield Finding("gpu", "ok", says)


def _free_memory_gib(meminfo: Path) -> float | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) / (1 << 20)
