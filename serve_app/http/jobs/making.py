"""One job, worked on by the owner of its lease: unit by unit, then the file of them all.

What is finished is on disk, so the work may stop anywhere and go on from there, on any server.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from serve_app.config import JobsConfig
from serve_app.errors import (
    RepeatedFailure,
    StageFailed,
    StageUnavailable,
    UnknownModel,
)
from serve_app.http.jobs.store import NoSuchJob, Progress, Spec, Store
from serve_app.http.speech.accept import Job, Speech, TextSize
from serve_app.http.speech.joining import speak_unit
from serve_app.resumption import Speak
from serve_app.storage.faults import full
from serve_app.storage.files import write_with
from serve_app.text.script import Unit
from serve_app.types import ClonedVoice, FinishReason

# As errors of its storage call it.
KEPT: Final = "audio of long texts"
# A unit that breaks a stage so often breaks the job.
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 0.5
# How often the space of all jobs is counted, in units.
_FULL_EVERY: Final = 16

logger = logging.getLogger(__name__)


class Held(Protocol):
    """Whether this server is still the one that works on a job."""

    @property
    def is_held(self) -> bool: ...


class LeaseLost(Exception):
    """Another server works on the job."""


class NotNow(Exception):
    """What the job is spoken with is away: it starts, or the server goes. It goes on later."""


async def accepted(
    speech: Speech, config: JobsConfig, spec: Spec, voice: ClonedVoice | None
) -> Job:
    """What `spec` asks for, by the model that it was accepted for, and the voice made for it.

    Where that model is not served any more, and the voice is none that was made for it, what was
    asked for decides anew.

    Raises what `Speech.accept` raises.
    """
    fields = {**spec.fields, "input": "Hello."}
    if voice is not None:
        fields["voice"] = None
    size = TextSize(config.max_input_chars, config.max_unit_frames)
    if voice is not None or speech.serves(spec.model) is not False:
        fields["model"] = spec.model
    job = await speech.accept(fields, spec.id, size, voice)
    return replace(job, transport="job")


@dataclass(frozen=True)
class Making:
    """The parts that every job is made with."""

    store: Store
    speech: Speech
    speak: Speak
    config: JobsConfig
    streams: int

    async def make(self, spec: Spec, lease: Held) -> None:
        """Go on with a job until it is completed.

        Raises:
            SpeechError: it cannot be made.
            StorageFull: there is no room left for it.
            NoSuchJob: it has been deleted.
            LeaseLost: another server has taken over.
            NotNow: it can go on later.
        """
        units = await self.store.on_thread(self.store.units, spec.id)
        voice = await self.store.on_thread(self.store.voice, spec.id)
        try:
            job = await accepted(self.speech, self.config, spec, voice)
        except (StageUnavailable, UnknownModel) as error:
            if isinstance(error, UnknownModel) and self.speech.serves(spec.model) is False:
                raise
            raise NotNow(f"{spec.id}: {error}") from error
        progress = await self._begun(spec, units)
        work = _Work(self, spec, lease, units, job, progress)
        await work.speak_units()
        await work.write_result()

    async def _begun(self, spec: Spec, units: tuple[Unit, ...]) -> tuple[Progress, set[int]]:
        before = await self.store.on_thread(self.store.progress, spec.id)
        sizes = await self.store.on_thread(self.store.finished, spec.id)
        progress = replace(
            before,
            state="processing",
            units_done=len(sizes),
            chars_done=sum(len(units[number].text) for number in sizes),
            num_samples=sum(sizes.values()) // 2,
            num_bytes=sum(sizes.values()),
            error=None,
            started_at=before.started_at or time.time(),
            updated_at=time.time(),
        )
        await self.store.on_thread(self.store.save, spec.id, progress)
        return progress, set(sizes)


class _Work:
    def __init__(
        self,
        making: Making,
        spec: Spec,
        lease: Held,
        units: tuple[Unit, ...],
        job: Job,
        begun: tuple[Progress, set[int]],
    ) -> None:
        self._making = making
        self._store = making.store
        self._spec = spec
        self._lease = lease
        self._units = units
        self._job = job
        self._progress, finished = begun
        self._missing = iter([n for n in range(len(units)) if n not in finished])
        self._saving = asyncio.Lock()

    async def speak_units(self) -> None:
        workers = [asyncio.create_task(self._worker()) for _ in range(self._making.streams)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _worker(self) -> None:
        for number in self._missing:
            samples, reason = await self._unit(number)
            async with self._saving:
                await self._store.on_thread(self._keep, number, samples, reason)

    async def _unit(self, number: int) -> tuple[np.ndarray, FinishReason]:
        rate_hz = self._job.card.sample_rate_hz
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await speak_unit(
                    self._making.speak, self._job.request, self._units, number, rate_hz
                )
            except StageFailed as error:
                if attempt == _ATTEMPTS or isinstance(error, RepeatedFailure):
                    raise
                logger.warning("%s: unit %d broke, trying again", self._spec.id, number)
            except UnknownModel as error:  # it was served when the job went on
                raise NotNow(f"{self._spec.id}: {error}") from error
            await asyncio.sleep(_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    def _keep(self, number: int, samples: np.ndarray, reason: FinishReason) -> None:
        if not self._lease.is_held:
            raise LeaseLost(self._spec.id)
        if number % _FULL_EVERY == 0:
            self._check_room()
        self._store.put_unit(self._spec.id, number, samples)
        before = self._progress
        self._progress = replace(
            before,
            units_done=before.units_done + 1,
            chars_done=before.chars_done + len(self._units[number].text),
            num_samples=before.num_samples + len(samples),
            num_bytes=before.num_bytes + 2 * len(samples),
            num_cut=before.num_cut + (reason == "length"),
            updated_at=time.time(),
        )
        self._store.save(self._spec.id, self._progress)

    def _check_room(self) -> None:
        used = sum(record.progress.num_bytes for record in self._store.records())
        if used >= self._making.config.max_bytes:
            raise full(KEPT)

    async def write_result(self) -> None:
        """Encode all units as one file, on a thread that ends before this does."""
        stop = threading.Event()
        writing = asyncio.ensure_future(self._store.on_thread(self._write_result, stop))
        try:
            await asyncio.shield(writing)
        finally:
            stop.set()
            await asyncio.gather(writing, return_exceptions=True)

    def _write_result(self, stop: threading.Event) -> None:
        def parts() -> Iterator[np.ndarray]:
            for number in range(len(self._units)):
                if stop.is_set():
                    raise LeaseLost(self._spec.id)
                yield self._store.unit(self._spec.id, number)

        output, num_samples = self._job.output, self._progress.num_samples
        path = self._store.result(self._spec.id)
        try:
            write_with(path, lambda file: output.write(parts(), num_samples, file))
            num_bytes = path.stat().st_size
        except FileNotFoundError as error:
            raise NoSuchJob(self._spec.id) from error
        if not self._lease.is_held:
            raise LeaseLost(self._spec.id)
        now_s = time.time()
        done = replace(
            self._progress,
            state="completed",
            num_bytes=self._progress.num_bytes + num_bytes,
            duration_s=round(output.seconds(num_samples), 3),
            updated_at=now_s,
            finished_at=now_s,
        )
        self._store.save(self._spec.id, done)
