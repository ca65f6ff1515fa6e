"""What is heard of an in-context clone: the reference's samples after the recording's share."""

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from serve_app.config import SpeechDecoderConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder
from serve_app.pipeline import join, synthesize
from serve_app.types import ClonedVoice, CodecFrames, SpeechRequest
from tests.conftest import TinyCheckpoint
from tests.parity.reference import Reference

SAMPLES_PER_FRAME = 1920
RECORDING, SPOKEN, HEARD = 40, 30, 11


class Known:
    """A frame source that says what it is told to, three frames at a time."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes

    async def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        del request
        for first in range(0 if done is None else len(done), len(self.codes), 3):
            codes = self.codes[first : first + 3]
            last = first + len(codes) == len(self.codes)
            yield CodecFrames(codes, first, "stop" if last else None)


def test_samples_are_those_of_the_reference_also_when_resumed(
    tiny_checkpoint: TinyCheckpoint,
) -> None:
    path = tiny_checkpoint("base")
    codes = np.random.default_rng(3).integers(0, 2048, (RECORDING + SPOKEN, 16))
    recording, spoken = codes[:RECORDING], codes[RECORDING:]
    theirs = Reference(path).decode(codes)[RECORDING * SAMPLES_PER_FRAME :]
    voice = ClonedVoice(np.zeros(64, np.float32), recording, "Said before.")
    request = SpeechRequest("r", "tiny", "Hello.", voice, "auto", seed=0)
    config = SpeechDecoderConfig(max_streams=2)
    decoder = StreamingSpeechDecoder.load(open_checkpoint(path), config, "cpu")
    try:
        for done, start in ((None, 0), (spoken[:HEARD], HEARD * SAMPLES_PER_FRAME)):
            ours = asyncio.run(join(synthesize(Known(spoken), decoder, request, done)))
            assert ours.first_sample == start
            samples = ours.samples.astype(np.float32) / 32767
            # Half a step of 16 bits, and float32.
            np.testing.assert_allclose(samples, theirs[start:], rtol=0, atol=2.5e-5)
    finally:
        decoder.close()
