"""Decoders on a tiny checkpoint and on a network that counts."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from serve_app.models.checkpoint.files import Checkpoint, open_checkpoint
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.steps import DecoderSteps
from tests.conftest import TinyCheckpoint
from tests.unit.speech_decoder.counting import CountingModel
from tests.unit.speech_decoder.waiting import WaitingRunner


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: TinyCheckpoint) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint())


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> SpeechDecoderModel:
    tensors = checkpoint.speech_tokenizer_tensors("decoder.")
    return SpeechDecoderModel(checkpoint.spec.speech_decoder).load(tensors, torch.float32)


@pytest.fixture
def counting(model: SpeechDecoderModel) -> CountingModel:
    return CountingModel(model)


@pytest.fixture
def deaths() -> list[str]:
    """Why decoders of this test would have ended their process."""
    return []


MakeRunner = Callable[..., WaitingRunner]


@pytest.fixture
def make_runner(counting: CountingModel, deaths: list[str]) -> Iterator[MakeRunner]:
    made: list[WaitingRunner] = []

    def make(
        max_streams: int = 4, batch_sizes: tuple[int, ...] = (1, 2, 4), **options: Any
    ) -> WaitingRunner:
        steps = DecoderSteps(
            counting, max_streams=max_streams, chunk_frames=(1, 2, 4), batch_sizes=batch_sizes
        )
        made.append(WaitingRunner(steps, on_death=deaths.append, **options))
        counting.steps.clear()
        return made[-1]

    yield make
    counting.gate.set()
    for runner in made:
        runner.close()
