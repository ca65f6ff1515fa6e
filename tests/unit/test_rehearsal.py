"""What a stage goes through before it is ready."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import InvalidRequest
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.random_checkpoint.write import write_configuration
from serve_app.models.rehearsal import rehearse, rehearse_decoder
from serve_app.types import ClonedVoice, CodecFrames, SpeechRequest, TaskType


class Stage:
    """Counts who is there at the same time; refuses texts that are too long."""

    def __init__(self, longest: int = 10**9) -> None:
        self.longest = longest
        self.now: list[str] = []
        self.together: list[int] = []
        self.ids: list[str] = []
        self.lengths: list[int] = []

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[int, None]:
        if len(request.text) > self.longest:
            raise InvalidRequest("too long", param="input")
        self.lengths.append(len(request.text))
        self.ids.append(request.request_id)
        self.now.append(request.request_id)
        try:
            await asyncio.sleep(0)
            self.together.append(len(self.now))
            assert request.max_new_tokens is not None
            for item in range(request.max_new_tokens):
                yield item
        finally:
            self.now.remove(request.request_id)


def rehearsed(folder: Path, variant: TaskType, most: int, stage: Stage) -> Stage:
    write_configuration(folder, size="tiny", variant=variant)
    asyncio.run(rehearse(stage.speak, read_spec(folder), most, positions=100))
    return stage


@pytest.mark.parametrize(("most", "sizes"), [(1, {1}), (8, {1, 2, 4, 8}), (11, {1, 2, 4, 8, 11})])
def test_streams_come_alone_and_together(tmp_path: Path, most: int, sizes: set[int]) -> None:
    stage = rehearsed(tmp_path, "custom_voice", most, Stage())
    assert sizes <= set(stage.together)
    assert max(stage.together) == most
    assert stage.now == []


def test_prompts_become_longer_than_one_step(tmp_path: Path) -> None:
    stage = rehearsed(tmp_path, "voice_design", 2, Stage())
    assert max(stage.lengths) > 100 * len("word")


def test_prompts_end_where_a_request_does(tmp_path: Path) -> None:
    stage = rehearsed(tmp_path, "custom_voice", 2, Stage(longest=200))
    assert max(stage.lengths) <= 200
    assert max(stage.together) == 2


def test_a_decoder_meets_every_chunk_length_in_every_number_of_streams() -> None:
    now: set[int] = set()
    met: set[tuple[int, int]] = set()
    primed: list[int] = []

    async def pcm(
        frames: AsyncIterator[CodecFrames], done: np.ndarray | None = None
    ) -> AsyncGenerator[None, None]:
        primed.append(0 if done is None else len(done))
        now.add(id(frames))
        async for item in frames:
            await asyncio.sleep(0)
            met.add((len(now), len(item.codes)))
            yield None
        now.discard(id(frames))

    asyncio.run(rehearse_decoder(pcm, 16, (1, 3, 8), 5))
    assert {(streams, frames) for streams in (1, 2, 4, 5) for frames in (1, 3, 8)} <= met
    assert max(primed) == 12


def test_a_checkpoint_that_clones_voices_speaks_with_both_kinds(tmp_path: Path) -> None:
    contexts: list[bool] = []

    class Cloning(Stage):
        def speak(self, request: SpeechRequest) -> AsyncGenerator[int, None]:
            assert isinstance(request.voice, ClonedVoice)
            contexts.append(request.context is not None)
            return super().speak(request)

    rehearsed(tmp_path, "base", 4, Cloning())
    assert set(contexts) == {True, False}
