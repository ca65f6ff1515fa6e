"""Compile what Triton's cache lacks while a starting process imports its frameworks.

An import takes seconds on one core; the kernels of the stages take a minute on one and seconds on
many. A cache that was filled carries a mark, so that later starts begin nothing. The mark stands
for kernels, lists and compilers: with another Triton, vLLM or kernel the cache is filled again.
"""

import fcntl
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from serve_app.models.kernel_cache.gpus import capabilities
from serve_app.models.kernel_cache.variants import LISTS, versions

# A minute on one core is usual; what then hangs would keep a server from ever being ready. What is
# not compiled by then is compiled by whoever needs it.
_DEADLINE_S: Final = 180.0
_MODELS: Final = Path(__file__).parents[1]
_IS_KERNEL: Final = b"@triton."
_FILL: Final = (sys.executable, "-m", "serve_app.models.kernel_cache", "fill")

logger = logging.getLogger(__name__)


def fill_ahead(device: str) -> Callable[[], None]:
    """Start filling the cache for the GPUs that are here, unless that was done before.

    Processes that start side by side wait for one of them to do it.

    Args:
        device: "cuda" or "cpu", where nothing is compiled.

    Returns:
        Waits until it is done or has failed, and never raises.
    """
    if device != "cuda" or not any(LISTS.glob("*.jsonl")) or all(map(is_marked, present())):
        return lambda: None
    return start_command(_FILL, _DEADLINE_S)


def fill_beside(
    find: Callable[[], list[int]] = capabilities,
) -> "subprocess.Popen[bytes] | None":
    """Start filling the cache, unless it is filled for all GPUs that `find` finds: None. Without
    torch, whose import this is to run beside.
    """
    found = find()
    return None if found and all(map(is_marked, found)) else subprocess.Popen(_FILL)


def start_command(command: tuple[str, ...], deadline_s: float) -> Callable[[], None]:
    """Start a process; returns what waits for it, `deadline_s` at most, and logs what it said."""
    end_s = time.monotonic() + deadline_s
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def wait() -> None:
        try:
            said, _ = process.communicate(timeout=max(0.0, end_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("kernel cache: not filled within %.0f s", deadline_s)
            with suppress(ProcessLookupError):  # with the processes that compile for it
                os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        for line in said.splitlines():
            logger.info("kernel cache: %s", line)
        if process.returncode:
            logger.warning(
                "kernel cache: filling it ended with %d; kernels are compiled when they are needed",
                process.returncode,
            )

    return wait


def present() -> list[int]:
    """Compute capabilities, times ten, of the GPUs that this process sees."""
    import torch

    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return sorted(10 * major + minor for major, minor in found)


def is_marked(capability: int) -> bool:
    return _mark(capability).exists()


@contextmanager
def marking(capability: int) -> Iterator[bool]:
    """Mark the cache as filled after the body; one process at a time has the body.

    Yields:
        Whether there is anything to do: not where another process has done it meanwhile.
    """
    mark = _mark(capability)
    mark.parent.mkdir(parents=True, exist_ok=True)
    with mark.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        wanted = not mark.exists()
        yield wanted
        if wanted:
            mark.touch()


def _mark(capability: int) -> Path:
    """A file in the cache that stands for these kernels, lists and compilers."""
    from triton import knobs

    parts = [file.read_bytes() for file in sorted(LISTS.glob("*.jsonl"))]
    sources = (file.read_bytes() for file in sorted(_MODELS.rglob("*.py")))
    parts += [source for source in sources if _IS_KERNEL in source]
    parts += [f"{name} {version}".encode() for name, version in versions().items()]
    version = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return Path(knobs.cache.dir) / f"qwen3-tts-{capability}-{version}.filled"
