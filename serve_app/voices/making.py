"""From a recording, a stored voice, several of them or a vector to the voice of a request.

All of it happens before a stage hears of the request: threads of its own decode, an encoder
elsewhere encodes, and what was encoded once is kept, here and in the library.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import numpy as np

from serve_app.audio.decoding import ClipLimits, decode_clip
from serve_app.errors import (
    InvalidRequest,
    Overloaded,
    StageFailed,
    StageUnavailable,
    StorageAway,
    StorageFull,
)
from serve_app.protocols import VoiceEncoder
from serve_app.types import LARGEST_SPEAKER_VALUE, ClonedVoice, EncodedClip, ModelCard
from serve_app.voices.clips import clip_key, samples_of, vector_of
from serve_app.voices.library import Library
from serve_app.voices.values import StoredVoice

T = TypeVar("T")
EncoderOf = Callable[[ModelCard], VoiceEncoder | None]

MAX_BLENDED: Final = 8
_THREADS: Final = 2
# Recordings that may wait to be decoded; each is at most `ClipLimits.max_bytes`.
_MAX_WAITING: Final = 16
# Encoded clips in memory: 50 kB each at most.
_MAX_KEPT: Final = 512

logger = logging.getLogger(__name__)


class VoiceMaker:
    """Makes voices for the checkpoints that are served.

    Args:
        encoder_of: what encodes recordings for a checkpoint; None: nothing does.
        limits: of recordings.
        timeout_s: the longest that a request waits for its voice.
    """

    def __init__(
        self, library: Library, encoder_of: EncoderOf, limits: ClipLimits, timeout_s: float
    ) -> None:
        self._library = library
        self._encoder_of = encoder_of
        self._limits = limits
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="recordings")
        self._waiting = 0
        self._kept: OrderedDict[tuple[str, str], EncodedClip] = OrderedDict()
        self._making: dict[tuple[str, str], asyncio.Task[EncodedClip]] = {}

    async def stored(
        self, voice: StoredVoice, card: ModelCard, x_vector_only: bool = False
    ) -> ClonedVoice:
        """A voice of the library.

        With its transcript it is cloned in context, else by its vector alone.

        Raises:
            InvalidRequest: the checkpoint cannot speak with it.
            Overloaded, StageUnavailable, StageFailed: it could not be encoded.
        """
        if voice.source == "embedding":
            vector = await self._within(self._stored_vector(voice, card))
            return ClonedVoice(vector, name=voice.name)
        self._require_cloning(card, "voice")
        key = (voice.id, clip_key(card))
        clip = await self._encoded(key, lambda: self._stored_clip(voice, card, key[1]))
        return cloned(clip, None if x_vector_only else voice.transcript, voice.name)

    async def blended(
        self, parts: Sequence[tuple[StoredVoice, float]], card: ModelCard
    ) -> ClonedVoice:
        """The mean of the vectors of several voices, by weight; as loud as they are by themselves.

        Raises what `stored` raises.
        """
        made = [await self.stored(voice, card, x_vector_only=True) for voice, _ in parts]
        weights = np.array([weight for _, weight in parts], np.float64)
        weights /= weights.sum()
        vectors = np.stack([voice.speaker_vector.astype(np.float64) for voice in made])
        mean = weights @ vectors
        norm = float(np.linalg.norm(mean))
        # A mean is shorter than what it is made of, and a short vector is a faint likeness.
        wanted = float(weights @ np.linalg.norm(vectors, axis=1))
        name = "+".join(voice.name for voice, _ in parts)
        return ClonedVoice((mean * (wanted / norm if norm else 1)).astype(np.float32), name=name)

    async def of_recording(
        self, read: Callable[[], bytes], text: str | None, card: ModelCard, param: str
    ) -> ClonedVoice:
        """A voice for one request. `read` gives the file, on a thread.

        Raises what `stored` and `decoded` raise.
        """
        self._require_cloning(card, param)
        data, digest = await self.on_thread(_with_digest, read)
        key = (digest, clip_key(card))

        async def encode() -> EncodedClip:
            return await self._encode(await self.decoded(data, param), card)

        clip = await self._encoded(key, encode)
        return cloned(clip, text, f"recording-{digest[:8]}")

    def of_vector(self, values: Any, card: ModelCard, param: str) -> ClonedVoice:
        """
        Raises:
            InvalidRequest: it is no vector of this checkpoint.
        """
        self._require_cloning(card, param)
        vector = checked_vector(values, param)
        _require_size(vector, card, param)
        return ClonedVoice(vector, name="embedding")

    async def decoded(self, data: bytes, param: str) -> np.ndarray:
        """float32 [N] of a recording; raises what `decode_clip` raises, and Overloaded."""
        return await self.on_thread(decode_clip, data, param, self._limits)

    async def on_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """
        Raises:
            Overloaded: too many recordings are waiting.
        """
        if self._waiting >= _MAX_WAITING:
            raise Overloaded("Too many recordings are being read at the moment.")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, work, *arguments)
        finally:
            self._waiting -= 1

    def prepare(self, voice: StoredVoice, cards: Sequence[ModelCard]) -> None:
        """Encode a voice that is new for checkpoints that clone, behind its maker's back."""
        for card in cards:
            if voice.source != "embedding" and card.speaker_vector_size is not None:
                key = (voice.id, clip_key(card))
                if self._encoder_of(card) is not None and key not in self._making:
                    self._begin(
                        key, lambda card=card, key=key: self._stored_clip(voice, card, key[1])
                    )

    async def _encoded(
        self, key: tuple[str, str], make: Callable[[], Awaitable[EncodedClip]]
    ) -> EncodedClip:
        """The clip of `key`, made once however many ask for it at a time."""
        clip = self._kept.get(key)
        if clip is not None:
            self._kept.move_to_end(key)
            return clip
        making = self._making.get(key) or self._begin(key, make)
        # Whoever leaves does not take it from the others.
        return await self._within(asyncio.shield(making))

    def _begin(
        self, key: tuple[str, str], make: Callable[[], Awaitable[EncodedClip]]
    ) -> asyncio.Task[EncodedClip]:
        async def made() -> EncodedClip:
            # Longer than anybody waits: an encoder that has to start first is there for the next.
            async with asyncio.timeout(2 * self._timeout_s):
                clip = await make()
            self._kept[key] = clip
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
            return clip

        def over(task: asyncio.Task[EncodedClip]) -> None:
            self._making.pop(key, None)
            if not task.cancelled() and task.exception() is not None:
                logger.info("a voice could not be encoded: %s", task.exception())

        task = asyncio.create_task(made())
        self._making[key] = task
        task.add_done_callback(over)
        return task

    async def _stored_clip(self, voice: StoredVoice, card: ModelCard, key: str) -> EncodedClip:
        clip = await self._library.clip(voice, key)
        if clip is not None and len(clip.speaker_vector) == card.speaker_vector_size:
            return clip
        recording = await self._library.recording(voice)
        if recording is None:
            raise InvalidRequest("The voice has been deleted.", "voice", "voice_not_found")
        samples = await self.on_thread(samples_of, recording)
        clip = await self._encode(samples, card)
        try:
            await self._library.keep_clip(voice, key, clip)
        except (StorageAway, StorageFull) as error:  # it is encoded again another time
            logger.warning("%s: its encoded clip could not be kept: %s", voice.id, error)
        return clip

    async def _stored_vector(self, voice: StoredVoice, card: ModelCard) -> np.ndarray:
        self._require_cloning(card, "voice")
        data = await self._library.vector(voice)
        if data is None:
            raise InvalidRequest("The voice has been deleted.", "voice", "voice_not_found")
        vector = vector_of(data)
        _require_size(vector, card, "voice")
        return vector

    async def _encode(self, samples: np.ndarray, card: ModelCard) -> EncodedClip:
        encoder = self._encoder_of(card)
        if encoder is None:
            raise StageUnavailable("no voice encoder is deployed")
        clip = await encoder.encode(samples)
        if len(clip.speaker_vector) != card.speaker_vector_size:
            raise StageFailed("the voice encoder belongs to another checkpoint")
        return clip

    async def _within(self, work: Awaitable[T]) -> T:
        timer = asyncio.timeout(self._timeout_s)
        try:
            async with timer:
                return await work
        except TimeoutError as error:
            raise StageUnavailable("the voice was not ready in time") from error

    def _require_cloning(self, card: ModelCard, param: str) -> None:
        if card.speaker_vector_size is None:
            raise InvalidRequest(
                f"The model '{card.name}' cannot speak with recorded voices. Checkpoints that"
                " clone: Qwen3-TTS-12Hz-0.6B-Base and Qwen3-TTS-12Hz-1.7B-Base.",
                param,
                "voice_not_supported",
            )


def _with_digest(read: Callable[[], bytes]) -> tuple[bytes, str]:
    data = read()
    return data, hashlib.sha256(data).hexdigest()


def cloned(clip: EncodedClip, text: str | None, name: str) -> ClonedVoice:
    """In context where it is known what the recording says."""
    if not text:
        return ClonedVoice(clip.speaker_vector, name=name)
    return ClonedVoice(clip.speaker_vector, clip.codes, text, name)


def checked_vector(values: Any, param: str) -> np.ndarray:
    """float32 [H] of a list of numbers.

    Raises:
        InvalidRequest: it is none.
    """
    is_list = isinstance(values, list) and 0 < len(values) <= 1 << 14
    if not is_list or not all(type(value) in (int, float) for value in values):
        raise InvalidRequest(f"'{param}' must be a list of numbers.", param)
    # False of NaN as well; `math.isfinite` raises of an integer that no float holds.
    if not all(abs(value) <= LARGEST_SPEAKER_VALUE for value in values):
        raise InvalidRequest(f"'{param}' has numbers that are in no voice's vector.", param)
    return np.array(values, np.float32)


def _require_size(vector: np.ndarray, card: ModelCard, param: str) -> None:
    if len(vector) != card.speaker_vector_size:
        raise InvalidRequest(
            f"The speaker vector has {len(vector)} numbers; '{card.name}' takes"
            f" {card.speaker_vector_size}.",
            param,
            "invalid_speaker_embedding",
        )
