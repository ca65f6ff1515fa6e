"""Long-text jobs on disk: a folder for each, which any server that sees it can go on with.

    job_<id>/spec.json      what was asked for; never changes
             units.json     the units of its text, cut once, so that a newer server cuts no other
             voice          the voice that was made for it, where one was
             wanted         "run", "pause" or "cancel": what a client wants, by whichever server
             status.json    how far it is, by the owner of the lease
             units/00012    the samples of a finished unit
             result         the finished file
             lease.<n>      see `lease`

Every file appears whole. All methods but `on_thread` block.
"""

import asyncio
import json
import logging
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np

from serve_app.storage.files import sync_folder, write_whole
from serve_app.text.script import Unit
from serve_app.types import ClonedVoice
from serve_app.voices.clips import voice_of

Wanted = Literal["run", "pause", "cancel"]
State = Literal["pending", "processing", "paused", "completed", "failed", "cancelled"]

_ID: Final = re.compile(r"job_[0-9a-f]{32}")
# What a server that was killed may leave of a job that begins or goes.
_LEFTOVER: Final = re.compile(r"\.(?:new|gone)-.*")
_LEFTOVER_S: Final = 3600.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spec:
    """What was asked for.

    Attributes:
        fields: of the request but for its text, and always with a seed.
        owner: name of the API key that it belongs to; None: made when no key was asked for.
    """

    id: str
    created_at: int
    fields: Mapping[str, Any]
    model: str
    format: str
    content_type: str
    num_chars: int
    num_units: int
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        state: without what a client wants, so never "paused" or "cancelled".
        num_samples: of the finished units, at the model's rate.
        num_bytes: on disk.
        num_cut: units whose speech a limit of the server cut.
        error: OpenAI's error object.
        finished_at: when it was completed or failed.
    """

    state: State = "pending"
    units_done: int = 0
    chars_done: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    num_cut: int = 0
    duration_s: float | None = None
    error: Mapping[str, Any] | None = None
    started_at: float | None = None
    updated_at: float | None = None
    finished_at: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A job as it is now."""

    spec: Spec
    wanted: Wanted
    progress: Progress

    @property
    def state(self) -> State:
        made: State = self.progress.state
        if made in ("completed", "failed") or self.wanted == "run":
            return made
        return "paused" if self.wanted == "pause" else "cancelled"

    @property
    def changed_at(self) -> float:
        return self.progress.updated_at or self.spec.created_at


class NoSuchJob(Exception):
    """There is no job of this id, or it has been deleted."""


class Store:
    """All jobs of a folder.

    Args:
        threads: that may wait for it at a time.
    """

    def __init__(self, root: Path, threads: int = 4) -> None:
        self.root = root
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="jobs")
        # Told of once.
        self._unreadable: set[str] = set()

    async def on_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call what waits for the folder, on one of its threads: where a shared one hangs, it keeps
        these, and not those that requests for speech are read on.
        """
        call = partial(copy_context().run, work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def create(self, spec: Spec, units: Sequence[Unit], voice: bytes | None = None) -> None:
        """A new job, which exists as a whole or not at all; `voice` as `voice_bytes` writes it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)  # texts and voices of others
        draft = self.root / f".new-{secrets.token_hex(8)}"
        (draft / "units").mkdir(parents=True)
        write_whole(draft / "units.json", _json([asdict(unit) for unit in units]))
        write_whole(draft / "spec.json", _json(asdict(spec)))
        if voice is not None:
            write_whole(draft / "voice", voice)
        write_whole(draft / "wanted", b"run")
        write_whole(draft / "status.json", _json(asdict(Progress())))
        draft.rename(self.folder(spec.id))
        sync_folder(self.root)

    def ids(self) -> Iterator[str]:
        if self.root.is_dir():
            yield from (path.name for path in self.root.iterdir() if _ID.fullmatch(path.name))

    def folder(self, job_id: str) -> Path:
        """
        Raises:
            NoSuchJob: this cannot be the id of one.
        """
        if not _ID.fullmatch(job_id):
            raise NoSuchJob(job_id)
        return self.root / job_id

    def record(self, job_id: str) -> Record:
        """
        Raises:
            NoSuchJob: it is not there, or cannot be read; one of those must not hide the others.
        """
        try:
            spec = _known(Spec, _read(self.folder(job_id) / "spec.json"))
            return Record(spec, self.wanted(job_id), self.progress(job_id))
        except (AttributeError, TypeError, ValueError) as error:
            if job_id not in self._unreadable:
                self._unreadable.add(job_id)
                logger.error("%s cannot be read: %r", job_id, error)
            raise NoSuchJob(job_id) from error

    def records(self) -> list[Record]:
        """All jobs, the oldest first."""
        found: list[Record] = []
        for job_id in self.ids():
            try:
                found.append(self.record(job_id))
            except NoSuchJob:  # deleted meanwhile
                continue
        return sorted(found, key=lambda record: (record.spec.created_at, record.spec.id))

    def units(self, job_id: str) -> tuple[Unit, ...]:
        return tuple(Unit(**unit) for unit in _read(self.folder(job_id) / "units.json"))

    def voice(self, job_id: str) -> ClonedVoice | None:
        """The voice that was made for it; None: the fields say which one it is."""
        try:
            return voice_of((self.folder(job_id) / "voice").read_bytes())
        except FileNotFoundError:
            return None

    def wanted(self, job_id: str) -> Wanted:
        try:
            text = (self.folder(job_id) / "wanted").read_text()
        except FileNotFoundError as error:
            raise NoSuchJob(job_id) from error
        return "pause" if text == "pause" else "cancel" if text == "cancel" else "run"

    def want(self, job_id: str, wanted: Wanted) -> None:
        self._write(job_id, "wanted", wanted.encode())

    def progress(self, job_id: str) -> Progress:
        return _known(Progress, _read(self.folder(job_id) / "status.json"))

    def save(self, job_id: str, progress: Progress) -> None:
        self._write(job_id, "status.json", _json(asdict(progress)))

    def finished(self, job_id: str) -> dict[int, int]:
        """The numbers of the finished units, and of how many bytes each is."""
        folder = self.folder(job_id) / "units"
        try:
            files = [file for file in folder.iterdir() if file.name.isdigit()]
            return {int(file.name): file.stat().st_size for file in files}
        except FileNotFoundError as error:
            raise NoSuchJob(job_id) from error

    def put_unit(self, job_id: str, number: int, samples: np.ndarray) -> None:
        """Keep int16 [N] as the audio of a unit."""
        self._write(job_id, f"units/{number:05d}", samples.astype("<i2").tobytes())

    def unit(self, job_id: str, number: int) -> np.ndarray:
        """int16 [N].

        Raises:
            NoSuchJob: it is not finished, or not there any more.
        """
        try:
            data = (self.folder(job_id) / "units" / f"{number:05d}").read_bytes()
        except FileNotFoundError as error:
            raise NoSuchJob(job_id) from error
        return np.frombuffer(data, "<i2").astype(np.int16)

    def result(self, job_id: str) -> Path:
        return self.folder(job_id) / "result"

    def delete(self, job_id: str) -> None:
        """
        Raises:
            NoSuchJob: it is not there.
        """
        gone = self.root / f".gone-{job_id}-{secrets.token_hex(4)}"
        try:
            # First out of everybody's sight: who writes to it finds out.
            self.folder(job_id).rename(gone)
        except FileNotFoundError as error:
            raise NoSuchJob(job_id) from error
        shutil.rmtree(gone, ignore_errors=True)

    def clean(self, keep_s: float, keep_units_s: float) -> None:
        """Delete jobs at which nothing has changed for `keep_s` but those that are at work, and the
        units of those that were completed `keep_units_s` ago.
        """
        now_s = time.time()
        for record in self.records():
            age_s, job_id = now_s - record.changed_at, record.spec.id
            if age_s > keep_s and record.state not in ("pending", "processing"):
                try:
                    self.delete(job_id)
                except NoSuchJob:
                    continue
            elif age_s > keep_units_s and record.state == "completed":
                self._drop_units(job_id, record.progress)
            for draft in self.folder(job_id).glob(".*"):  # of a file of hours, above all
                with suppress(FileNotFoundError):
                    if now_s - draft.stat().st_mtime > _LEFTOVER_S:
                        draft.unlink()
        if not self.root.is_dir():
            return
        for path in self.root.iterdir():
            with suppress(FileNotFoundError):  # another server cleans as well
                if _LEFTOVER.fullmatch(path.name) and now_s - path.stat().st_mtime > _LEFTOVER_S:
                    shutil.rmtree(path, ignore_errors=True)

    def _drop_units(self, job_id: str, progress: Progress) -> None:
        shutil.rmtree(self.folder(job_id) / "units", ignore_errors=True)
        with suppress(FileNotFoundError, NoSuchJob):  # deleted meanwhile
            num_bytes = self.result(job_id).stat().st_size
            if num_bytes != progress.num_bytes:
                # Nobody works on it, so that nobody else writes this.
                self.save(job_id, replace(progress, num_bytes=num_bytes))

    def _write(self, job_id: str, name: str, data: bytes) -> None:
        try:
            write_whole(self.folder(job_id) / name, data)
        except FileNotFoundError as error:
            raise NoSuchJob(job_id) from error


def new_id() -> str:
    return f"job_{secrets.token_hex(16)}"


def _known(kind: type[T], content: Any) -> T:
    """The object of a file, without what a newer server may have added to it.

    Raises:
        TypeError: it has not all that it needs.
    """
    names = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in content.items() if name in names})


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NoSuchJob(path.parent.name) from error
