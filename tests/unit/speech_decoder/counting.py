"""A network that counts, a clock that stands still, and codes to decode."""

import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.network.state import DecoderState
from serve_app.types import CodecFrames
from tests.unit.speech_decoder.waiting import WaitingRunner

SAMPLES_PER_FRAME = 1920


class CountingModel(SpeechDecoderModel):
    """A network whose samples tell position and first code, and whose steps can be held back."""

    def __init__(self, template: SpeechDecoderModel) -> None:
        super().__init__(template.spec)
        self.register_buffer("tables", torch.zeros(1), persistent=False)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.steps: list[tuple[int, ...]] = []
        self.primed: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def decode(self, codes: Tensor, state: DecoderState) -> Tensor:
        self.entered.set()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.steps.append((*codes[:, 0, 0].tolist(), codes.shape[2]))
        frames = state.position[:, None] + torch.arange(codes.shape[2])
        state.position.add_(codes.shape[2])
        marked = (frames + 1000 * codes[:, 0]).double() / 32767
        return marked.repeat_interleave(SAMPLES_PER_FRAME, 1)

    def prime(self, codes: Tensor, state: DecoderState) -> None:
        self.primed.append((int(codes[0, 0, 0]), codes.shape[2]))
        state.position.add_(codes.shape[2])

    def hold(self, runner: WaitingRunner, slot: int, codes: np.ndarray) -> "Future[np.ndarray]":
        """Start a step that lasts until the gate opens."""
        self.gate.clear()
        self.entered.clear()
        future = runner.submit(slot, codes)
        assert self.entered.wait(10)
        return future


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def codes_of(first: int, num_frames: int = 1) -> np.ndarray:
    codes = np.zeros((num_frames, 16), np.int64)
    codes[:, 0] = first
    return codes


async def items(*chunks: CodecFrames) -> AsyncGenerator[CodecFrames, None]:
    for chunk in chunks:
        yield chunk


def growing(num_chunks: int, first: int = 0) -> list[CodecFrames]:
    return [CodecFrames(codes_of(first, 2), 2 * i) for i in range(num_chunks)]
