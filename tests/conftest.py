"""What all tests share: markers by folder, one thread, checkpoints written once per session."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.models.random_checkpoint.write import Eos, Size, write_checkpoint
from serve_app.types import TaskType
from tests import turns

TESTS = Path(__file__).parent
FOLDERS = ("unit", "parity", "integration", "gpu", "e2e")

TinyCheckpoint = Callable[..., Path]

# More threads than cores make tiny tensors slower, and fix the order of sums across machines.
torch.set_num_threads(1)


# The voice library of whoever runs the tests is not for them.
DATA = tempfile.TemporaryDirectory(prefix="tts-tests-data-")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["XDG_DATA_HOME"] = DATA.name
    for folder in FOLDERS:
        config.addinivalue_line("markers", f"{folder}: tests/{folder} (set from the folder)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)
        if folder == "gpu" and not torch.cuda.is_available():
            item.add_marker(without_gpu)
    # An engine that starts makes vLLM look through all imported modules, and it stumbles over some
    # that the reference package brings: tests that use the reference come after those with engines.
    items.sort(key=lambda item: hasattr(getattr(item, "module", None), "Reference"))
    # What takes longest begins first, or one worker would end with it long after the others.
    items.sort(key=lambda item: turns.turn_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return turns.scheduler(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """A factory of checkpoint folders, shared by equal arguments: no test may change one."""
    written: dict[tuple[object, ...], Path] = {}

    def checkpoint(
        variant: TaskType = "custom_voice", size: Size = "tiny", seed: int = 0, eos: Eos = "natural"
    ) -> Path:
        key = (variant, size, seed, eos)
        if key not in written:
            path = tmp_path_factory.mktemp("checkpoints") / f"{size}-{variant}-{seed}-{eos}"
            write_checkpoint(path, size=size, variant=variant, seed=seed, eos=eos)
            written[key] = path
        return written[key]

    return checkpoint
