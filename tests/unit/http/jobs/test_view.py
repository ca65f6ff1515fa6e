"""What a client hears of a job while it is made."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from starlette.types import Message

from serve_app.audio.formats import AudioFormat
from serve_app.audio.output import Output
from serve_app.http.jobs.store import Spec, Store, new_id
from serve_app.http.jobs.view import followed
from serve_app.http.response import AudioResponse, ReaderStalled
from serve_app.text.script import Unit


def test_a_listener_who_reads_nothing_for_too_long_is_told_of_as_that(tmp_path: Path) -> None:
    store, job_id = Store(tmp_path), new_id()
    spec = Spec(job_id, 1, {"voice": "vivian"}, "m", "pcm", "audio/pcm", 12, 2)
    store.create(spec, [Unit("Hello."), Unit("Again.")])
    for number in range(2):
        store.put_unit(job_id, number, np.ones(2400, np.int16))

    async def scenario() -> None:
        pieces = followed(store, store.record(job_id), Output(AudioFormat.PCM, 24000))
        response = AudioResponse(await anext(pieces), pieces, {}, "audio/pcm", stall_s=0.05)

        async def nothing_comes() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        with pytest.raises(ReaderStalled):
            await response({"type": "http"}, nothing_comes, send)

    asyncio.run(scenario())
