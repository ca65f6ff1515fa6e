"""The seams between stages. Deployments, tests and `fakes` know the stages only by these."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Protocol

import numpy as np

from serve_app.errors import StageFailed, StageUnavailable
from serve_app.types import CodecFrames, EncodedClip, Health, PcmChunk, SpeechRequest


def require(health: Health) -> None:
    """Return if a stage works: what Serve's `check_health` and callers of a stage ask for.

    Raises:
        StageUnavailable, StageFailed: it does not, with the reason and the times.
    """
    if health.state == "works":
        return
    last = "none yet" if health.progress_s is None else f"{health.progress_s:.0f} s ago"
    message = f"{health.reason} (busy for {health.busy_s:.0f} s, last progress: {last})"
    raise StageFailed(message) if health.state == "failed" else StageUnavailable(message)


class FrameSource(Protocol):
    """What makes the codec frames of a request: a talker here, or the way to one elsewhere."""

    def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        """Yield the frames of `request` in order, in items of a size that the talker decides.

        `done` (int64 [T, Q]) are frames made earlier, here or elsewhere: the stream goes on after
        them, exactly as if it had never stopped. Closing the generator aborts the request in the
        engine.

        Raises:
            InvalidRequest: the prompt cannot be built (unknown voice, text too long, ...). Before
                any frame.
            Overloaded: the queue is full. Before any frame.
            StageFailed: the engine died, or cannot run this request.
            StageUnavailable: the engine has ended or hangs, or has lost its code predictor.
        """
        ...


class Talker(FrameSource, Protocol):
    """Text to codec frames (all groups: a talker owns its way to a code predictor)."""

    def stats(self) -> Mapping[str, float]:
        """Load of the engine: running, waiting, kv_cache_usage, preemptions, steps."""
        ...

    def health(self) -> Health: ...

    def close(self) -> None: ...


class SampleSource(Protocol):
    """What makes the samples of codec frames."""

    def pcm(
        self, frames: AsyncIterator[CodecFrames], done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield one chunk of samples per item of `frames`; any chunking gives the same samples.

        `done` (int64 [T, Q]) are frames whose samples the listener already has: they prime the
        state and are not yielded. Holds one stream slot from the first item on.

        Raises:
            Overloaded: no stream slot is free. Before any sample.
            StageFailed: the device failed.
        """
        ...


class SpeechDecoder(SampleSource, Protocol):
    """Codec frames to samples, stateful per stream; many streams at once."""

    def stats(self) -> Mapping[str, float]:
        """Load: streams, max_streams, and counters of steps and frames."""
        ...

    def health(self) -> Health: ...

    def close(self) -> None: ...


class SlottedDecoder(SpeechDecoder, Protocol):
    """What `fused` uses beyond: the slot is known to the talker, which may decode into it first.

    Its talker takes the slot as a third argument of `frames`; a first item then carries samples.
    """

    def pcm(
        self,
        frames: AsyncIterator[CodecFrames],
        done: np.ndarray | None = None,
        slot: int | None = None,
    ) -> AsyncGenerator[PcmChunk, None]:
        """As `SpeechDecoder.pcm`, in a slot that the caller holds; None: in one of its own."""
        ...


class VoiceEncoder(Protocol):
    """A recording to what a cloned voice is made of."""

    async def encode(self, samples: np.ndarray) -> EncodedClip:
        """Encode a clip: float32 [N] mono at the card's sample rate, -1..1.

        Raises:
            InvalidRequest: the clip is too short or too long, or no samples.
            Overloaded: too many clips are being encoded.
            StageUnavailable: nothing can encode at the moment.
            StageFailed: the device failed.
        """
        ...
