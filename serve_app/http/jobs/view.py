"""What a client sees of a job: the object, its progress as events, its audio while it is made."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, Final

from serve_app.audio.output import Output
from serve_app.http.jobs.store import NoSuchJob, Record, Store
from serve_app.http.speech.writer import AudioCut

_LOOK_S: Final = 0.5
# A comment keeps proxies from closing a connection on which nothing moves.
_ALIVE_S: Final = 10.0
_OVER: Final = ("completed", "failed", "cancelled")


def job_object(record: Record, keep_s: float) -> dict[str, Any]:
    spec, progress = record.spec, record.progress
    path = f"/v1/audio/speech/long/{spec.id}"
    return {
        "id": spec.id,
        "object": "audio.speech.job",
        # Twice: chatterbox's clients read these two names.
        "job_id": spec.id,
        "status": record.state,
        "created_at": spec.created_at,
        "started_at": _seconds(progress.started_at),
        "finished_at": _seconds(progress.finished_at),
        "expires_at": round(record.changed_at + keep_s),
        "model": spec.model,
        "voice": spec.fields.get("voice"),
        "response_format": spec.format,
        "input_characters": spec.num_chars,
        "progress": {
            "units_done": progress.units_done,
            "units_total": spec.num_units,
            "characters_done": progress.chars_done,
            "percent": round(100 * progress.units_done / spec.num_units, 1),
            "units_cut": progress.num_cut,
        },
        "duration_seconds": progress.duration_s,
        "error": progress.error,
        "download_url": f"{path}/download" if record.state == "completed" else None,
        "events_url": f"{path}/sse",
    }


def _seconds(value: float | None) -> int | None:
    return None if value is None else round(value)


async def progress_events(store: Store, job_id: str, keep_s: float) -> AsyncGenerator[bytes, None]:
    """The job whenever it has changed, until it is over; `type` says in which state it is."""
    shown: bytes | None = None
    silent_s = 0.0
    while True:
        try:
            record = await store.on_thread(store.record, job_id)
        except NoSuchJob:
            yield _event({"type": "speech.job.deleted", "id": job_id})
            return
        event = _event({"type": f"speech.job.{record.state}", **job_object(record, keep_s)})
        if event != shown:
            shown, silent_s = event, 0.0
            yield event
        if record.state in _OVER:
            return
        await asyncio.sleep(_LOOK_S)
        silent_s += _LOOK_S
        if silent_s >= _ALIVE_S:
            silent_s = 0.0
            yield b": alive\n\n"


def _event(content: Any) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n\n"


async def followed(store: Store, record: Record, output: Output) -> AsyncGenerator[bytes, None]:
    """The audio of a job as a stream, unit by unit as they are finished.

    Raises:
        AudioCut: the job failed, was cancelled or deleted.
    """
    job_id = record.spec.id
    encoder = output.stream()
    for number in range(record.spec.num_units):
        samples = None
        while samples is None:
            try:
                samples = await store.on_thread(store.unit, job_id, number)
            except NoSuchJob:
                await _still_made(store, job_id)
                await asyncio.sleep(_LOOK_S)
        data = await asyncio.to_thread(encoder.encode, samples)
        if data:
            yield data
    tail = await asyncio.to_thread(encoder.finish)
    if tail:
        yield tail


async def _still_made(store: Store, job_id: str) -> None:
    try:
        state = (await store.on_thread(store.record, job_id)).state
    except NoSuchJob as error:
        raise AudioCut(f"{job_id}: deleted") from error
    if state in _OVER:
        raise AudioCut(f"{job_id}: {state}")
