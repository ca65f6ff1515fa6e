"""Encoded clips and recordings as bytes: safetensors and FLAC, nothing that could hold code."""

import hashlib
import io
from typing import Final

import numpy as np
import soundfile
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app.audio.decoding import CLIP_HZ
from serve_app.errors import StageFailed
from serve_app.types import ClonedVoice, EncodedClip, ModelCard

_VECTOR: Final = "speaker_vector"
_CODES: Final = "codes"
_TEXT: Final = "reference_text"


def clip_bytes(clip: EncodedClip) -> bytes:
    return save({_VECTOR: _float32(clip.speaker_vector), _CODES: _int64(clip.codes)})


def clip_of(data: bytes) -> EncodedClip:
    """
    Raises:
        ValueError: it is no encoded clip.
    """
    found = _load(data)
    vector, codes = found.get(_VECTOR), found.get(_CODES)
    if vector is None or codes is None or vector.ndim != 1 or codes.ndim != 2:
        raise ValueError("not an encoded clip")
    return EncodedClip(_float32(vector), _int64(codes))


def vector_bytes(vector: np.ndarray) -> bytes:
    return save({_VECTOR: _float32(vector)})


def vector_of(data: bytes) -> np.ndarray:
    """float32 [H].

    Raises:
        StageFailed: it cannot be read.
    """
    try:
        return _float32(load(data)[_VECTOR])
    except (SafetensorError, KeyError) as error:
        raise StageFailed("a vector of the library cannot be read") from error


def voice_bytes(voice: ClonedVoice) -> bytes:
    """A whole voice, for who has to speak with it later, whatever becomes of the library."""
    parts = {_VECTOR: _float32(voice.speaker_vector)}
    if voice.reference_codes is not None:
        parts[_CODES] = _int64(voice.reference_codes)
        parts[_TEXT] = np.frombuffer((voice.reference_text or "").encode(), np.uint8)
    parts["name"] = np.frombuffer(voice.name.encode(), np.uint8)
    return save(parts)


def voice_of(data: bytes) -> ClonedVoice:
    """
    Raises:
        ValueError: it is no voice.
    """
    found = _load(data)
    if _VECTOR not in found:
        raise ValueError("not a voice")
    codes = found.get(_CODES)
    return ClonedVoice(
        _float32(found[_VECTOR]),
        None if codes is None else _int64(codes),
        None if codes is None else found[_TEXT].tobytes().decode(),
        found["name"].tobytes().decode(),
    )


def clip_key(card: ModelCard) -> str:
    """Of what a clip is encoded for: the same checkpoint under any name."""
    text = f"{card.path}\n{card.speaker_vector_size}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def flac_bytes(samples: np.ndarray) -> bytes:
    """float32 [N] at CLIP_HZ as 16 bit FLAC."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), CLIP_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def samples_of(flac: bytes) -> np.ndarray:
    """float32 [N] of a recording that `flac_bytes` wrote.

    Raises:
        StageFailed: it cannot be read.
    """
    try:
        samples, rate_hz = soundfile.read(io.BytesIO(flac), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise StageFailed("a recording of the library cannot be read") from error
    if rate_hz != CLIP_HZ or samples.ndim != 1:
        raise StageFailed("a recording of the library is of another kind")
    return samples


def _load(data: bytes) -> dict[str, np.ndarray]:
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _int64(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.int64)
