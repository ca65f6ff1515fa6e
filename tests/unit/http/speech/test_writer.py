"""Encoders beside the event loop: whole files hold up neither it nor the streams of others."""

import asyncio
import threading
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from serve_app import metrics
from serve_app.audio.formats import AudioFormat
from serve_app.audio.output import Output
from serve_app.config import IngressConfig
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_card
from serve_app.http.catalog import Catalog
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.writer import AudioWriter
from serve_app.http.voices.parts import Voices
from serve_app.pipeline import synthesize

CONFIG = IngressConfig()
# More than there are threads for encoders.
NUM_FILES = 40


class HeldOutput(Output):
    """Whole files are done when `go` is set; notes the threads that they are made on."""

    go: threading.Event
    threads: set[int]

    def file(self, samples: np.ndarray) -> bytes:
        self.threads.add(threading.get_ident())
        assert self.go.wait(60)
        return super().file(samples)


def job_of(audio_format: AudioFormat, output=Output):
    speech = Speech(Catalog((fake_card(),)), CONFIG, Voices.open(CONFIG, lambda _: None).voicing)
    job = speech.check({"input": "Hello.", "response_format": audio_format, "seed": 1}).job
    return replace(job, output=output(audio_format, 24000))


def writer():
    talker, decoder = FakeTalker(num_frames=10, chunk_frames=(1, 2)), FakeSpeechDecoder()
    speak = lambda request: synthesize(talker, decoder, request)  # noqa: E731
    return AudioWriter(speak, 60.0, metrics.NoRecorder(), lambda: 0.0)


@pytest.mark.parametrize("form", [AudioFormat.MP3, AudioFormat.FLAC, AudioFormat.WAV])
def test_a_stream_goes_on_while_every_thread_for_files_is_at_work(form):
    async def main():
        HeldOutput.go, HeldOutput.threads = threading.Event(), set()
        audio = writer()
        files = [
            asyncio.create_task(audio.file(job_of(form, HeldOutput))) for _ in range(NUM_FILES)
        ]
        try:
            async with asyncio.timeout(60):
                while not HeldOutput.threads:  # the first one has got as far as its encoder
                    await asyncio.sleep(0.001)
                async with aclosing(audio.pieces(job_of(AudioFormat.MP3))) as pieces:
                    data = b"".join([piece async for piece in pieces])
            assert data[:1] == b"\xff"
            assert not any(file.done() for file in files)
        finally:
            HeldOutput.go.set()
        made = await asyncio.gather(*files)
        assert {reason for _, reason in made} == {"stop"}
        assert threading.get_ident() not in HeldOutput.threads
        assert len(HeldOutput.threads) < NUM_FILES

    asyncio.run(main())
