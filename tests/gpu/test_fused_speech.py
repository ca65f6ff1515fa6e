"""First frames decoded on the device behind the talker's step: the audio is that of the decoder."""

import asyncio
import dataclasses
from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.fused.speech import FusedSpeech
from serve_app.models.kernel_cache.record import recording
from serve_app.models.random_checkpoint.write import write_checkpoint
from serve_app.types import CodecFrames
from tests.parity.engines import request

FRAMES = 20
CONFIG = {
    "placement": "fused",
    "talker": {"max_num_seqs": 16, "max_model_len": 1024},
    "code_predictor": {"batch_sizes": [1, 2, 4, 8, 16]},
    "speech_decoder": {"max_streams": 16, "batch_sizes": [1, 2, 4, 8, 16]},
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "0.6b"
    write_checkpoint(folder, size="0.6b", variant="custom_voice", eos="unreachable", device="cuda")
    config = AppConfig.model_validate(CONFIG)
    speech = FusedSpeech.load(open_checkpoint(folder), config, "cuda")
    yield speech
    speech.close()


def spoken(speech: FusedSpeech, count: int, texts: Sequence[str] = ("Hello there.",)) -> list[list]:
    """The chunks of `count` requests together, with one text each or one for all."""

    async def one(index: int) -> list:
        text = texts[index % len(texts)]
        asked = request(text, seed=index, max_new_tokens=FRAMES)
        asked = dataclasses.replace(asked, request_id=f"r{index}")
        async with aclosing(speech.speak(asked)) as chunks:
            return [chunk async for chunk in chunks]

    async def every() -> list[list]:
        return await asyncio.gather(*[one(index) for index in range(count)])

    return asyncio.run(every())


def decoded(speech: FusedSpeech, chunks: list) -> np.ndarray:
    """The decoder's audio of the same codes in the same chunks, without the talker."""

    async def frames():
        position = 0
        for chunk in chunks:
            yield CodecFrames(chunk.codes, position, chunk.finish_reason)
            position += len(chunk.codes)

    async def every() -> np.ndarray:
        async with aclosing(speech.decoder.pcm(frames())) as chunks:
            return np.concatenate([chunk.samples async for chunk in chunks])

    return asyncio.run(every())


@pytest.mark.parametrize("count", [1, 5, 16])
def test_audio_is_that_of_the_decoder_alone(speech, count) -> None:
    launches = []
    first_audio = speech.talker.inspect.first_audio
    launch = first_audio.launch

    def noted(slots, codes, rows):
        launches.append(len(slots))
        return launch(slots, codes, rows)

    first_audio.launch = noted
    try:
        streams = spoken(speech, count)
    finally:
        first_audio.launch = launch
    assert 0 < sum(launches) <= count
    assert max(launches) <= first_audio.max_rows
    for chunks in streams:
        codes = np.concatenate([chunk.codes for chunk in chunks])
        samples = np.concatenate([chunk.samples for chunk in chunks])
        assert codes.shape == (FRAMES, 16)
        assert [len(chunk.codes) for chunk in chunks] == [1, 3, 8, 8]
        expected = decoded(speech, chunks).astype(np.float64)
        error = np.abs(samples - expected)
        print(f"{count} streams: mean difference {error.mean():.1f}, largest {error.max():.0f}")
        # bf16 convolutions of another batch size round differently; a wrong state is far off.
        assert error.mean() < (0.1 * np.abs(expected).mean() if count > 1 else 1e-9)
    assert speech.decoder.stats()["streams"] == 0


def test_a_closed_stream_gives_its_slot_back(speech) -> None:
    async def leave() -> None:
        for index in range(40):
            stream = speech.speak(request("Hello there.", seed=index, max_new_tokens=FRAMES))
            if index % 2:
                await anext(stream)
            else:
                waiting = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0.001 * (index % 7))
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            await stream.aclose()

    asyncio.run(leave())
    assert speech.decoder.stats()["streams"] == 0
    assert len(spoken(speech, 16)) == 16


def test_no_request_meets_a_kernel_that_was_not_compiled_before(speech: FusedSpeech) -> None:
    rng = np.random.default_rng(7)
    with recording() as late:
        for count in (1, 3, 16, 7, 2, 13, 16, 5):
            words = rng.integers(1, 60, count)
            spoken(speech, count, [("word " * n).strip() for n in words])
    assert not late
