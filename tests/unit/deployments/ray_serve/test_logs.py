"""What this package says reaches the file that Serve writes, and at once."""

import logging
import logging.handlers
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.logging_utils import StreamToLogger

from serve_app.deployments.ray_serve import logs, starts


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Serve's logger as it is in a replica in throughput mode."""
    serve, ours = logging.getLogger(SERVE_LOGGER_NAME), logging.getLogger("serve_app")
    before = [(log, log.handlers[:], log.propagate, log.level) for log in (serve, ours)]
    raises = logging.raiseExceptions
    path = tmp_path / "replica.log"
    kept_back = logging.handlers.MemoryHandler(1000, target=logging.FileHandler(path))
    serve.handlers = [kept_back]
    serve.setLevel(logging.INFO)
    yield path
    logging.raiseExceptions = raises
    for log, handlers, propagate, level in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def test_a_line_is_in_the_file_at_once_behind_what_was_kept_back(file: Path) -> None:
    logs.join()
    logs.join()
    logging.getLogger(SERVE_LOGGER_NAME).info("of Serve")
    assert file.read_text() == ""
    logging.getLogger("serve_app.requests").info("id=%s", "a")
    assert file.read_text().splitlines() == ["of Serve", "id=a"]


def test_handlers_that_serve_takes_later_count(file: Path, tmp_path: Path) -> None:
    logs.join()
    logging.getLogger(SERVE_LOGGER_NAME).handlers = [logging.FileHandler(tmp_path / "other.log")]
    logging.getLogger("serve_app.requests").info("id=b")
    assert (tmp_path / "other.log").read_text() == "id=b\n"
    assert file.read_text() == ""


def test_what_is_below_serves_level_is_not_written(file: Path) -> None:
    logging.getLogger(SERVE_LOGGER_NAME).setLevel(logging.WARNING)
    logs.join()
    logging.getLogger("serve_app.requests").info("id=c")
    logging.getLogger("serve_app.requests").warning("id=d")
    assert file.read_text().splitlines() == ["id=d"]


def test_what_is_said_of_a_start_is_not_kept_back(file: Path) -> None:
    class Kept(logging.Handler):
        flushed = False

        def emit(self, record: logging.LogRecord) -> None: ...

        def flush(self) -> None:
            self.flushed = True

    kept = Kept()
    logging.getLogger(SERVE_LOGGER_NAME).addHandler(kept)
    logs.join()
    starts.say({"imports": 0.25, "rehearsal": 1.0})
    assert kept.flushed
    assert file.read_text() == "started in 1.25 s: imports 0.25, rehearsal 1.00\n"


@pytest.mark.parametrize("is_kept_back", [True, False])
def test_a_line_that_finds_no_room_costs_nobody_anything(
    file: Path, monkeypatch: pytest.MonkeyPatch, is_kept_back: bool
) -> None:
    """As in a replica, whose stderr is the same log."""
    serve = logging.getLogger(SERVE_LOGGER_NAME)
    full = logging.FileHandler("/dev/full")
    kept_back = logging.handlers.MemoryHandler(1000, target=full)
    serve.handlers = [kept_back if is_kept_back else full]
    to_log = StreamToLogger(serve, logging.INFO, sys.stderr)
    monkeypatch.setattr(sys, "stderr", to_log)
    logs.join()
    for line in range(3):
        logging.getLogger("serve_app.requests").info("id=%d", line)
    serve.handlers = []
    full.stream = None  # whose buffer finds no room at its end either
