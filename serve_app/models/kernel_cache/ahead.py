"""Compile what Triton's cache lacks while a starting process imports its frameworks.

An import takes seconds on one core; the kernels of the stages take a minute on one and seconds on
many. A cache that was filled carries a mark, so that later starts begin nothing.
"""

import fcntl
import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Final

from serve_app.models.kernel_cache.variants import LISTS

logger = logging.getLogger(__name__)
_MODELS: Final = Path(__file__).parents[1]


def fill_ahead(device: str) -> Callable[[], None]:
    """Start filling the cache for the GPUs that are here, unless that was done before.

    Args:
        device: "cuda" or "cpu", where nothing is compiled.

    Returns:
        Waits until it is done; what could not be compiled is compiled by whoever needs it.
    """
    if device != "cuda" or not any(LISTS.glob("*.jsonl")) or all(map(is_marked, present())):
        return lambda: None
    command = [sys.executable, "-m", "serve_app.models.kernel_cache", "fill"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait() -> None:
        said, _ = process.communicate()
        for line in said.splitlines():
            logger.info("kernel cache: %s", line)

    return wait


def present() -> list[int]:
    """Compute capabilities, times ten, of the GPUs that this process sees."""
    import torch

    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return sorted(10 * major + minor for major, minor in found)


def is_marked(capability: int) -> bool:
    return _mark(capability).exists()


@contextmanager
def marking(capability: int) -> Iterator[None]:
    """Mark the cache as filled after the body; one process at a time has the body."""
    mark = _mark(capability)
    mark.parent.mkdir(parents=True, exist_ok=True)
    with mark.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        mark.touch()


def _mark(capability: int) -> Path:
    """A file in the cache that stands for these kernels, lists and compilers."""
    from triton import knobs

    files = sorted([*_MODELS.rglob("*kernel*.py"), *LISTS.glob("*.jsonl")])
    parts = [file.read_bytes() for file in files]
    for package in ("triton", "vllm"):
        try:
            parts.append(metadata.version(package).encode())
        except metadata.PackageNotFoundError:  # importable all the same, from a PYTHONPATH
            parts.append(b"")
    version = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return Path(knobs.cache.dir) / f"qwen3-tts-{capability}-{version}.filled"
