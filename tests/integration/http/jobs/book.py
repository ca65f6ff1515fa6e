"""A server of long texts in a process of its own, and what its audio is to be.

    python -m tests.integration.http.jobs.book <folder> <port>

Its voice is noise that is a function of text and seed: quick to make, and no two units are alike.
"""

import asyncio
import sys
import zlib

import numpy as np
import uvicorn

from serve_app.config import IngressConfig, JobsConfig
from serve_app.fakes import fake_card
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import Status
from serve_app.http.speech.accept import Speech, TextSize
from serve_app.http.voices.parts import Voices
from serve_app.types import PcmChunk

CARD = fake_card(max_new_tokens=8192)
UNIT_FRAMES = 64
UNIT_SAMPLES = UNIT_FRAMES * 1920
# 200,000 characters, of which none is there twice.
TEXT = "".join(f"Sentence {i:05d} of a book, which goes on. " for i in range(5000))[:200_000]
FIELDS = {"voice": "ryan", "seed": 11, "response_format": "wav"}


async def speak(request):
    seed = zlib.crc32(f"{request.text} {request.seed} {request.voice}".encode())
    samples = np.random.default_rng(seed).integers(-9000, 9000, UNIT_SAMPLES).astype(np.int16)
    yield PcmChunk(samples, 0, np.zeros((UNIT_FRAMES, 4), np.int64), "stop")


async def speak_slowly(request):
    await asyncio.sleep(0.02)
    async for chunk in speak(request):
        yield chunk


def config(folder):
    return IngressConfig(jobs=JobsConfig(directory=folder, lease_s=0.6, poll_s=0.1))


def expected(**fields):
    """Parts of int16 [N]: what the text is as one stream, never interrupted."""
    limits = config("").jobs
    size = TextSize(limits.max_input_chars, limits.max_unit_frames)
    voicing = Voices.open(config(""), lambda _: None).voicing
    speech = Speech(Catalog([CARD]), config(""), voicing)
    return speech.check({"input": TEXT, **FIELDS, **fields}, size=size).job.chunks(speak)


def main(folder, port):
    async def status():
        return Status("healthy")

    app = build_api(speak_slowly, Catalog([CARD]), config(folder), status)
    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
