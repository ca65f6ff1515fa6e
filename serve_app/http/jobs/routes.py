"""`/v1/audio/speech/long`: jobs for texts of hours."""

import asyncio
import contextlib
import os
import platform
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, Response

from serve_app.audio import provenance
from serve_app.config import IngressConfig
from serve_app.errors import Conflict, InvalidRequest, NotFound, Overloaded
from serve_app.http.background import Background
from serve_app.http.document import AUDIO, EVENTS, JSON, operation, responds
from serve_app.http.draining.drain import Drain
from serve_app.http.errors import AsciiJSONResponse
from serve_app.http.jobs.fields import fields_of
from serve_app.http.jobs.lease import Leases
from serve_app.http.jobs.making import KEPT, Making, accepted
from serve_app.http.jobs.runner import Runner
from serve_app.http.jobs.store import NoSuchJob, Record, Spec, State, Store, Wanted, new_id
from serve_app.http.jobs.view import followed, job_object, progress_events
from serve_app.http.names import find_voice
from serve_app.http.observe.record import current
from serve_app.http.reading import read_body
from serve_app.http.response import AudioResponse, until_gone
from serve_app.http.speech.accept import Job, Speech, TextSize
from serve_app.http.speech.document import FIELDS
from serve_app.http.speech.sse import CONTENT_TYPE
from serve_app.storage.faults import fault, full
from serve_app.types import ClonedVoice, NamedVoice
from serve_app.voices.clips import voice_bytes

T = TypeVar("T")
Change = Literal["pause", "resume", "cancel", "retry"]

# The most bytes of JSON that a character takes ("\\ud83d\\ude00"), and room for the other fields.
_BYTES_PER_CHAR: Final = 12
_OTHER_BYTES: Final = 1 << 16
# Its text is in its units, a voice that came along is kept as it was made, and how it is sent says
# who fetches it.
_NOT_OF_JOBS: Final = (
    *("input", "stream", "stream_format"),
    *("ref_audio", "ref_text", "references", "speaker_embedding", "x_vector_only_mode", "consent"),
)
_PATH: Final = "/v1/audio/speech/long"
_THREADS: Final = 4
# Three small files of a thousand jobs are read for a list, on a shared disk that may be slow.
_WORK_S: Final = 60.0
# How a client may change a job: what it then wants, and the states in which it can.
_CHANGES: Final[Mapping[Change, tuple[Wanted, tuple[State, ...]]]] = {
    "pause": ("pause", ("pending", "processing", "paused")),
    "resume": ("run", ("pending", "processing", "paused")),
    "cancel": ("cancel", ("pending", "processing", "paused", "cancelled")),
    "retry": ("run", ("failed", "cancelled")),
}


_DOCUMENT: Final = operation(
    FIELDS,
    {"a book": {"input": "Chapter one.\n\nIt was a dark night.", "voice": "alloy"}},
    JSON,
    202,
)


class Jobs:
    """The jobs of one ingress: answers clients, and works while `lifespan` is entered, until the
    ingress is to end; another one, or the next start, goes on.
    """

    def __init__(
        self, speech: Speech, background: Background, config: IngressConfig, drain: Drain
    ) -> None:
        self._speech = speech
        self._drain = drain
        self._config = config.jobs
        self._stall_s = config.reader_timeout_s
        # For each job that is made its work and the look after it, and some for clients.
        self._store = Store(config.jobs.folder, 2 * config.jobs.running + _THREADS)
        making = Making(
            self._store, speech, background.speak, config.jobs, config.background_streams
        )
        owner = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._runner = Runner(making, Leases(owner, config.jobs.lease_s), config.jobs)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        del app
        working = asyncio.create_task(self._work())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _work(self) -> None:
        running = asyncio.create_task(self._runner.run())
        try:
            await self._drain.ending()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def create(self, http: Request) -> Response:
        await self._call(self._check_room)
        raw = await read_body(http, _BYTES_PER_CHAR * self._config.max_input_chars + _OTHER_BYTES)
        fields = await asyncio.to_thread(fields_of, raw, http)
        for name in ("max_new_tokens", "max_tokens", "min_new_tokens"):
            if fields.get(name) is not None:
                raise InvalidRequest(f"'{name}' is not for long texts.", name)
        size = TextSize(self._config.max_input_chars, self._config.max_unit_frames)
        job = await self._speech.accept(fields, http.headers.get("x-request-id"), size)
        record = await self._call(self._create, fields, job)
        self._runner.wake(record.spec.id)
        headers = {"Location": f"{_PATH}/{record.spec.id}"}
        return AsciiJSONResponse(self._object(record), 202, headers)

    def _create(self, fields: Mapping[str, Any], job: Job) -> Record:
        kept = {name: value for name, value in fields.items() if name not in _NOT_OF_JOBS}
        voice, stated = job.request.voice, kept.get("voice")
        named = find_voice(stated, job.card) if isinstance(stated, str) else None
        if isinstance(voice, NamedVoice) and named != voice.name:
            # By an alias that may be gone when the job is made, and that nobody's key makes hold.
            kept["voice"] = voice.name
        spec = Spec(
            id=new_id(),
            created_at=int(time.time()),
            # A model's name may have said the language.
            fields={**kept, "seed": job.request.seed, "language": job.request.language},
            model=job.card.name,
            format=job.output.format,
            content_type=job.output.content_type,
            num_chars=len(job.request.text),
            num_units=len(job.units),
            owner=current().key,
        )
        # One that was made is kept whole: the job ends with the voice that it began with.
        made = voice_bytes(voice) if isinstance(voice, ClonedVoice) else None
        self._store.create(spec, job.units, made)
        return self._store.record(spec.id)

    def _check_room(self) -> None:
        records = self._store.records()
        if len(records) >= self._config.max_jobs:
            raise Overloaded(f"There are {len(records)} long texts already.", 60.0)
        if sum(record.progress.num_bytes for record in records) >= self._config.max_bytes:
            raise full(KEPT)

    async def listed(self, limit: int, after: str | None, status: State | None) -> Response:
        """The newest jobs first of who asks, those behind `after`."""
        records = [
            record
            for record in reversed(await self._call(self._store.records))
            if _is_own(record) and status in (None, record.state)
        ]
        if after is not None:
            ids = [record.spec.id for record in records]
            if after not in ids:
                raise NotFound(f"There is no job '{after}'.", "after", "not_found")
            records = records[ids.index(after) + 1 :]
        data = [self._object(record) for record in records[:limit]]
        return AsciiJSONResponse(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(records) > limit,
            }
        )

    async def shown(self, job_id: str) -> Response:
        return AsciiJSONResponse(self._object(await self._record(job_id)))

    async def deleted(self, job_id: str) -> Response:
        await self._record(job_id)
        await self._call(self._store.delete, job_id)
        return AsciiJSONResponse({"id": job_id, "object": "audio.speech.job", "deleted": True})

    async def changed(self, job_id: str, change: Change) -> Response:
        record = await self._call(self._change, job_id, change)
        self._runner.wake(job_id)
        return AsciiJSONResponse(self._object(record))

    def _change(self, job_id: str, change: Change) -> Record:
        wanted, allowed = _CHANGES[change]
        record = self._own(job_id)
        if record.state not in allowed:
            raise Conflict(f"The job is {record.state}; '{change}' is not possible.", None, "state")
        if record.state == "failed":
            # Nobody works on it, so that nobody else writes this.
            again = replace(record.progress, state="pending", error=None, finished_at=None)
            self._store.save(job_id, replace(again, updated_at=time.time()))
        self._store.want(job_id, wanted)
        return self._store.record(job_id)

    async def events(self, job_id: str) -> Response:
        await self._record(job_id)
        events = progress_events(self._store, job_id, self._config.keep_s)
        return AudioResponse(
            await anext(events),
            events,
            {"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            CONTENT_TYPE,
            self._stall_s,
        )

    async def download(self, job_id: str, follow: bool, http: Request) -> Response:
        record = await self._record(job_id)
        spec = record.spec
        name = f"{job_id}.{spec.format}"
        headers = {**provenance.HEADERS, "X-Accel-Buffering": "no"}
        if record.state == "completed":
            headers["Cache-Control"] = "private"
            path = self._store.result(job_id)
            return FileResponse(path, headers=headers, media_type=spec.content_type, filename=name)
        if not follow or record.state in ("failed", "cancelled"):
            raise Conflict(
                f"The job is {record.state}; 'follow=true' listens to one that is being made.",
                None,
                "not_completed",
            )
        job = await accepted(
            self._speech, self._config, spec, await self._call(self._store.voice, spec.id)
        )
        pieces = followed(self._store, record, job.output)
        try:
            first = await until_gone(http.receive, anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        headers["Cache-Control"] = "no-store"
        return AudioResponse(first, pieces, headers, spec.content_type, self._stall_s)

    def _object(self, record: Record) -> dict[str, Any]:
        return job_object(record, self._config.keep_s)

    async def _record(self, job_id: str) -> Record:
        return await self._call(self._own, job_id)

    def _own(self, job_id: str) -> Record:
        """The job of that id; another's is not there, as far as a client can tell.

        Raises:
            NoSuchJob: it does not exist, or belongs to another key.
        """
        record = self._store.record(job_id)
        if not _is_own(record):
            raise NoSuchJob(job_id)
        return record

    async def _call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call what waits for a disk, on a thread; a disk that hangs keeps that, not the caller."""
        try:
            async with asyncio.timeout(_WORK_S):
                return await self._store.on_thread(work, *arguments)
        except NoSuchJob as error:
            raise NotFound("There is no such job.", None, "not_found") from error
        except OSError as error:
            raise fault(error, KEPT) from error


def _is_own(record: Record) -> bool:
    """Whether the job belongs to the key of this request; without keys everybody may do all."""
    key = current().key
    return key is None or key == record.spec.owner


def add_routes(app: FastAPI, jobs: Jobs) -> None:
    def route(
        path: str, *methods: str, document: Mapping[str, Any]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Under OpenAI's prefix and, as chatterbox's clients ask, without it."""

        def add(handler: Callable[..., Any]) -> Callable[..., Any]:
            for method in methods:
                app.add_api_route(
                    _PATH + path,
                    handler,
                    methods=[method],
                    status_code=202 if document is _DOCUMENT else 200,
                    response_class=Response,
                    tags=["long texts"],
                    operation_id=f"{handler.__name__}_{method.lower()}",
                    openapi_extra=dict(document),
                )
                bare = _PATH.removeprefix("/v1") + path
                app.add_api_route(bare, handler, methods=[method], include_in_schema=False)
            return handler

        return add

    @route("", "POST", document=_DOCUMENT)
    async def create_job(request: Request) -> Response:
        """A job for a text of any length; its audio is a file, made in the background."""
        return await jobs.create(request)

    @route("", "GET", document=responds(JSON))
    async def list_jobs(
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: str | None = None,
        status: State | None = None,
    ) -> Response:
        return await jobs.listed(limit, after, status)

    @route("/{job_id}", "GET", document=responds(JSON))
    async def retrieve_job(job_id: str) -> Response:
        return await jobs.shown(job_id)

    @route("/{job_id}", "DELETE", document=responds(JSON))
    async def delete_job(job_id: str) -> Response:
        return await jobs.deleted(job_id)

    @route("/{job_id}/download", "GET", "HEAD", document=responds(AUDIO))
    async def download_job(request: Request, job_id: str, follow: bool = False) -> Response:
        return await jobs.download(job_id, follow, request)

    @route("/{job_id}/sse", "GET", document=responds(EVENTS))
    async def follow_job(job_id: str) -> Response:
        return await jobs.events(job_id)

    @route("/{job_id}/{change}", "PUT", "POST", document=responds(JSON))
    async def change_job(job_id: str, change: Change) -> Response:
        return await jobs.changed(job_id, change)
