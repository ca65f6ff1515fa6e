"""The speech decoder's deployment between a real decoder and talkers that are lost."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve

from serve_app.config import AppConfig
from serve_app.deployments.calls import Refused
from serve_app.deployments.speech_decoder import SpeechDecoderDeployment
from serve_app.errors import StageLost
from serve_app.fakes import FakeTalker
from serve_app.load.gate import StageLimits
from serve_app.load.served import About
from serve_app.types import NamedVoice, PcmChunk, SpeechRequest

NUM_FRAMES = 12
SCALES = {"max_streams": 1, "batch_sizes": [1], "chunk_frames": [1, 2]}
REQUEST = SpeechRequest("r", "m", "Hello.", NamedVoice("vivian"), "auto", seed=7)


@serve.deployment
class Talkers:
    """Frames as a talker's, of which the first ones are lost at the given frames."""

    def __init__(self, lost_at: list[int]) -> None:
        self._lost_at = list(lost_at)
        self._asked: list[int] = []

    async def frames(self, request: SpeechRequest, done: np.ndarray | None = None) -> Any:
        self._asked.append(0 if done is None else len(done))
        lost_at = self._lost_at.pop(0) if self._lost_at else None
        lost = StageLost("its process ended")
        talker = FakeTalker(NUM_FRAMES, 16, (1, 2), fail_at=lost_at, error=lost)
        async with aclosing(talker.frames(request, done)) as frames:
            async for item in frames:
                yield item

    async def stats(self) -> dict[str, Any]:
        return {"done_at_each_call": self._asked}


class Served:
    """The deployment, in this process and without a cluster."""

    def __init__(self, folder: Path, *lost_at: int) -> None:
        config = AppConfig.model_validate({"model": str(folder), "speech_decoder": SCALES})
        about = About(StageLimits((("SpeechDecoder", 1),), max_queued=0, max_wait_s=0.0))
        talkers = Talkers.bind(lost_at)
        decoder = SpeechDecoderDeployment.bind(config, "cpu", talkers, about)
        self._handle = serve.run(decoder, _local_testing_mode=True)

    async def speak(self) -> AsyncGenerator[Any, None]:
        async for item, num_streams in self._handle.options(stream=True).speak.remote(REQUEST):
            assert num_streams >= 1
            yield item

    async def stats(self) -> dict[str, Any]:
        return await self._handle.stats.remote()


def joined(chunks: list[PcmChunk], name: str) -> np.ndarray:
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


def test_a_stream_that_finds_no_slot_gives_no_work_to_a_talker(tiny_checkpoint) -> None:
    async def scenario() -> None:
        served = Served(tiny_checkpoint())
        first = served.speak()
        await anext(first)
        assert (await served.stats())["done_at_each_call"] == [0]
        # As a value: what is raised here Serve writes into its log, with a traceback.
        (refused,) = [item async for item in served.speak()]
        assert isinstance(refused, Refused)
        assert refused.error.stage == "speech_decoder"
        assert (await served.stats())["done_at_each_call"] == [0]
        assert [chunk async for chunk in first][-1].finish_reason == "stop"

    asyncio.run(scenario())


def test_the_decoder_keeps_its_state_when_its_talker_is_lost(tiny_checkpoint) -> None:
    async def scenario() -> None:
        whole = [chunk async for chunk in Served(tiny_checkpoint()).speak()]
        served = Served(tiny_checkpoint(), 5)
        resumed = [chunk async for chunk in served.speak()]
        np.testing.assert_array_equal(joined(resumed, "codes"), joined(whole, "codes"))
        # Rounded from sums in another order, as the chunks after the loss are others.
        np.testing.assert_allclose(joined(resumed, "samples"), joined(whole, "samples"), 0, 2)
        stats = await served.stats()
        assert len(stats["done_at_each_call"]) == 2
        # Each frame is decoded once: nothing is fed again to come back to where the stream was.
        assert stats["speech_decoder"]["frames"] == NUM_FRAMES

    asyncio.run(scenario())
