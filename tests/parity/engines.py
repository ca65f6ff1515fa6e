"""Talkers for tests: an engine on a checkpoint, driven from synchronous test code."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.config import CodePredictorConfig, TalkerConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.contract import FrameClient
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.process_end import OnDeath
from serve_app.models.talker.engine import VllmTalker
from serve_app.types import CodecFrames, NamedVoice, SamplingOverrides, SpeechRequest, Voice

GREEDY = SamplingOverrides(temperature=0.0)


def open_talker(
    path: Path,
    predictor: FrameClient | None = None,
    device: str = "cpu",
    on_death: OnDeath = lambda _: None,
    stall_s: float = 30.0,
    **config: object,
) -> VllmTalker:
    """An engine sized for tests; when it fails, its streams do."""
    settings = {
        "max_num_seqs": 32,
        "max_model_len": 512,
        "max_num_batched_tokens": 512,
        "block_size": 32,
    }
    checkpoint = open_checkpoint(path)
    predictor = predictor or InProcessFrames.load(checkpoint, CodePredictorConfig(), device)
    return VllmTalker(
        checkpoint,
        TalkerConfig(**{**settings, **config}),
        device,
        predictor,
        on_death=on_death,
        stall_s=stall_s,
    )


@contextmanager
def talker(path: Path, *args: Any, **kwargs: Any) -> Iterator[VllmTalker]:
    """`open_talker`, closed at the end."""
    engine = open_talker(path, *args, **kwargs)
    try:
        yield engine
    finally:
        engine.close()


def request(text: str, voice: str | Voice | None = "ryan", **fields: object) -> SpeechRequest:
    """A greedy request unless told otherwise."""
    defaults = {
        "request_id": "test",
        "model": "tiny",
        "voice": NamedVoice(voice) if isinstance(voice, str) else voice,
        "language": "english",
        "seed": 0,
        "talker": GREEDY,
        "subtalker": GREEDY,
    }
    return SpeechRequest(text=text, **{**defaults, **fields})


async def collect(stream: AsyncGenerator[CodecFrames, None]) -> list[CodecFrames]:
    async with aclosing(stream):
        return [item async for item in stream]


def codes_of(items: Sequence[CodecFrames]) -> np.ndarray:
    """int64 [T, Q] of a whole stream; the items must be consecutive."""
    position = items[0].first_frame
    for item in items:
        assert item.first_frame == position
        position += len(item.codes)
    assert [i.finish_reason for i in items[:-1]] == [None] * (len(items) - 1)
    assert items[-1].finish_reason is not None
    return np.concatenate([item.codes for item in items])


def speak(
    engine: VllmTalker,
    requests: Sequence[SpeechRequest],
    done: Sequence[np.ndarray] | None = None,
    delays_s: Sequence[float] | None = None,
) -> list[np.ndarray]:
    """Run requests together; the codes of each (of what follows `done`)."""

    async def one(index: int) -> np.ndarray:
        if delays_s is not None:
            await asyncio.sleep(delays_s[index])
        unique = dataclasses.replace(requests[index], request_id=f"r{index}")
        return codes_of(await collect(engine.frames(unique, done[index] if done else None)))

    async def every() -> list[np.ndarray]:
        return await asyncio.gather(*[one(i) for i in range(len(requests))])

    return asyncio.run(every())


def first_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say where two code arrays part, for the message of a failing test."""
    frames = min(len(ours), len(theirs))
    differing = np.argwhere(ours[:frames] != theirs[:frames])
    if len(differing):
        frame, group = differing[0]
        return f"frame {frame}, group {group}: {ours[frame, group]} != {theirs[frame, group]}"
    return f"{len(ours)} frames against {len(theirs)}" if len(ours) != len(theirs) else "equal"


def assert_same_codes(ours: np.ndarray, theirs: np.ndarray, what: str = "") -> None:
    assert np.array_equal(ours, theirs), (
        f"{what} first difference: {first_difference(ours, theirs)}"
    )
