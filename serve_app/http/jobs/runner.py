"""What each ingress does about the jobs in the shared folder, as long as it runs."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from serve_app.config import JobsConfig
from serve_app.errors import SpeechError
from serve_app.http.errors import error_response
from serve_app.http.jobs.lease import Lease, Leases
from serve_app.http.jobs.making import KEPT, LeaseLost, Making, NotNow
from serve_app.http.jobs.store import NoSuchJob, Record
from serve_app.storage.faults import fault

# How often an owner looks whether its job is still wanted.
_LOOK_S: Final = 0.25
_CLEAN_S: Final = 600.0
# What has ended is looked at again now and then: another server may have been told to try it again.
_ENDED_S: Final = 30.0

logger = logging.getLogger(__name__)


class Runner:
    """Takes jobs that nobody works on, and works on them."""

    def __init__(self, making: Making, leases: Leases, config: JobsConfig) -> None:
        self._making = making
        self._store = making.store
        self._leases = leases
        self._config = config
        self._working: dict[str, asyncio.Task[None]] = {}
        # Until when jobs are not looked at again.
        self._resting: dict[str, float] = {}
        self._wake = asyncio.Event()

    def wake(self, job_id: str) -> None:
        """A job is new, or is to go on."""
        self._resting.pop(job_id, None)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; the jobs then stop where they are."""
        cleaned_s = float("-inf")
        try:
            while True:
                self._wake.clear()
                try:
                    if time.monotonic() - cleaned_s > _CLEAN_S:
                        cleaned_s = time.monotonic()
                        keep_s, keep_units_s = self._config.keep_s, self._config.keep_units_s
                        await self._store.on_thread(self._store.clean, keep_s, keep_units_s)
                    await self._take_jobs()
                except Exception as error:  # a folder that is away for a while, above all
                    logger.error("cannot look for jobs in %s", self._store.root, exc_info=error)
                # Not `wait_for`, which before Python 3.12 may lose a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._config.poll_s):
                        await self._wake.wait()
        finally:
            for working in self._working.values():
                working.cancel()
            await asyncio.gather(*self._working.values(), return_exceptions=True)

    async def _take_jobs(self) -> None:
        room = self._config.running - len(self._working)
        if room > 0:
            for record, lease in await self._store.on_thread(self._claimed, room):
                job_id = record.spec.id
                working = asyncio.create_task(self._work(record, lease))
                self._working[job_id] = working
                working.add_done_callback(lambda _, job_id=job_id: self._left(job_id))

    def _left(self, job_id: str) -> None:
        del self._working[job_id]
        self._wake.set()

    def _claimed(self, room: int) -> list[tuple[Record, Lease]]:
        """Jobs that are this server's from now on, the oldest first."""
        now_s = time.monotonic()
        waiting: list[Record] = []
        ids = list(self._store.ids())
        self._forget_others(ids)
        for job_id in ids:
            if job_id in self._working or now_s < self._resting.get(job_id, now_s):
                continue
            with contextlib.suppress(NoSuchJob):
                record = self._store.record(job_id)
                if record.state in ("completed", "failed"):
                    self._resting[job_id] = now_s + _ENDED_S
                elif record.state in ("pending", "processing") and self._can_be_made(record):
                    waiting.append(record)
        waiting.sort(key=lambda record: (record.spec.created_at, record.spec.id))
        found: list[tuple[Record, Lease]] = []
        for record in waiting:
            if len(found) == room:
                break
            with contextlib.suppress(FileNotFoundError):
                lease = self._leases.claim(self._store.folder(record.spec.id))
                if lease is not None:
                    found.append((record, lease))
        return found

    def _can_be_made(self, record: Record) -> bool:
        """Not before it is known whether its model is served: a server learns of it after it has
        started, and which other one could make the job is nobody's guess until then. Other models
        are not waited for.
        """
        return self._making.speech.serves(record.spec.model) is not None

    def _forget_others(self, ids: Collection[str]) -> None:
        """Keep nothing of jobs that are gone."""
        for job_id in set(self._resting.copy()) - set(ids):
            self._resting.pop(job_id, None)
        self._leases.forget_others({self._store.folder(job_id) for job_id in ids})

    async def _work(self, record: Record, lease: Lease) -> None:
        job_id = record.spec.id
        logger.info("%s: %d of %d units", job_id, record.progress.units_done, record.spec.num_units)
        making = asyncio.create_task(self._making.make(record.spec, lease))
        watching = asyncio.create_task(self._watch(job_id, lease))
        try:
            await asyncio.wait({making, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            making.cancel()
            watching.cancel()
            await asyncio.gather(making, watching, return_exceptions=True)
            error = None if making.cancelled() else making.exception()
            with contextlib.suppress(NoSuchJob, OSError):
                if error is not None:
                    await self._store.on_thread(self._note, job_id, error, lease)
                await self._store.on_thread(lease.release)

    async def _watch(self, job_id: str, lease: Lease) -> None:
        """Return when the job is to stop."""
        renewed_s = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if await self._store.on_thread(self._store.wanted, job_id) != "run":
                    return
                if time.monotonic() - renewed_s >= self._config.lease_s / 4:
                    renewed_s = time.monotonic()
                    if not await self._store.on_thread(lease.renew):
                        logger.warning("%s: another server has taken over", job_id)
                        return
            except NoSuchJob:
                return
            except OSError as error:  # tried again until the lease is lost
                logger.warning("%s: cannot be watched: %s", job_id, error)

    def _note(self, job_id: str, error: BaseException, lease: Lease) -> None:
        """Say in the job why it failed, if it did."""
        if isinstance(error, NoSuchJob | LeaseLost) or not lease.is_held:
            return
        if isinstance(error, NotNow):
            logger.warning("%s; it goes on later", error)
            self._resting[job_id] = time.monotonic() + self._config.poll_s
            return
        cause = error if isinstance(error, Exception) else RuntimeError(str(error))
        if isinstance(cause, OSError):
            cause = fault(cause, KEPT)
        content = json.loads(bytes(error_response(cause).body))["error"]
        expected = isinstance(cause, SpeechError)
        logger.error("%s: failed: %s", job_id, error, exc_info=None if expected else error)
        now_s = time.time()
        before = self._store.progress(job_id)
        self._store.save(
            job_id,
            replace(before, state="failed", error=content, updated_at=now_s, finished_at=now_s),
        )
