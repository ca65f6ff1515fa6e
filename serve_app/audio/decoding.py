"""Recordings that somebody sends, decoded without trust: bounded in time, samples and memory.

libsndfile reads WAV, FLAC, Ogg and MP3, block by block and no further than a clip may be long. What
only FFmpeg reads (MP4, WebM, bare AAC) is decoded in a process of its own (`decoding_child`), which
may break or hang without harm. The content decides what a file is, never its name or stated type.
"""

import io
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

import numpy as np
import soundfile
import soxr

from serve_app.errors import InvalidRequest, StageUnavailable

# Of a recording as it is kept, and as voice encoders take it.
CLIP_HZ: Final = 24000
# Below it there is nothing in a recording but its noise: -50 dB of full scale.
_MIN_PEAK: Final = 0.003
_MIN_HZ: Final = 8000
_MAX_HZ: Final = 192_000
_MAX_CHANNELS: Final = 8
_CHILD_S: Final = 15.0
_KINDS: Final = "WAV, MP3, FLAC, Ogg, M4A (MP4), WebM or AAC"


@dataclass(frozen=True, slots=True)
class ClipLimits:
    """How long a recording may be, in seconds, and its file, in bytes."""

    min_s: float
    max_s: float
    max_bytes: int


def decode_clip(data: bytes, param: str, limits: ClipLimits) -> np.ndarray:
    """float32 [N] of a recording: mono, at CLIP_HZ, within -1..1. Takes up to a second.

    Raises:
        InvalidRequest: about `param`: no recording, or too long, too short, or silent.
        StageUnavailable: it could not be decoded here and now.
    """
    if len(data) > limits.max_bytes:
        megabytes = limits.max_bytes / (1 << 20)
        raise _unfit(f"'{param}' is larger than {megabytes:g} MiB.", param, "payload_too_large")
    if not data:
        raise _unfit(f"'{param}' is empty.", param)
    demuxer = _demuxer_of(data)
    if demuxer is not None:
        samples, rate_hz = _by_child(data, demuxer, param, limits)
    elif _is_read_here(data):
        samples, rate_hz = _by_libsndfile(data, param, limits)
    else:
        raise _unfit(f"'{param}' is not a recording in {_KINDS}.", param)
    duration_s = len(samples) / rate_hz
    if duration_s > limits.max_s:
        raise _unfit(f"'{param}' is longer than {limits.max_s:g} s.", param, "audio_too_long")
    if duration_s < limits.min_s:
        raise _unfit(
            f"'{param}' is {duration_s:.2f} s long, at least {limits.min_s:g} s are needed.",
            param,
            "audio_too_short",
        )
    if not np.isfinite(samples).all():
        raise _unfit(f"'{param}' has samples that are no numbers.", param)
    if np.abs(samples).max() < _MIN_PEAK:
        raise _unfit(f"'{param}' is silent.", param)
    if rate_hz != CLIP_HZ:
        samples = soxr.resample(samples, rate_hz, CLIP_HZ, quality="HQ")
    return np.clip(samples, -1, 1).astype(np.float32)


def mime_of(data: bytes) -> str:
    """The type of a file that `decode_clip` has taken."""
    demuxer = _demuxer_of(data)
    if demuxer is not None:
        return {"mp4": "audio/mp4", "matroska": "audio/webm"}.get(demuxer, "audio/aac")
    return {b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg"}.get(
        data[:4], "audio/mpeg"
    )


def _demuxer_of(data: bytes) -> str | None:
    """FFmpeg's name of a container that is left to it."""
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    # The twelve bits that begin a frame of ADTS, and its layer 0; an MP3's is never 0.
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "aac"
    return None


def _is_read_here(data: bytes) -> bool:
    if data[:4] == b"RIFF":
        return data[8:12] == b"WAVE"
    is_mp3 = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    return data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or is_mp3


def _by_libsndfile(data: bytes, param: str, limits: ClipLimits) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate_hz = file.samplerate
            if not _MIN_HZ <= rate_hz <= _MAX_HZ or not 1 <= file.channels <= _MAX_CHANNELS:
                raise _unfit(
                    f"'{param}' has {file.channels} channels at {rate_hz} Hz; up to"
                    f" {_MAX_CHANNELS} at {_MIN_HZ} to {_MAX_HZ} Hz are taken.",
                    param,
                )
            parts: list[np.ndarray] = []
            # One more than it may have, so that a longer one is known.
            left = int(limits.max_s * rate_hz) + 1
            while left > 0:
                block = file.read(min(left, rate_hz), dtype="float32", always_2d=True)
                if not len(block):
                    break
                parts.append(block.mean(axis=1))
                left -= len(block)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise _unfit(f"'{param}' cannot be decoded: it is damaged, or no audio.", param) from error
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return samples, rate_hz


def _by_child(data: bytes, demuxer: str, param: str, limits: ClipLimits) -> tuple[np.ndarray, int]:
    command = [sys.executable, "-m", "serve_app.audio.decoding_child", demuxer]
    try:
        done = subprocess.run(
            [*command, f"{limits.max_s:g}"], input=data, capture_output=True, timeout=_CHILD_S
        )
    except subprocess.TimeoutExpired as error:
        raise _unfit(f"'{param}' takes too long to decode.", param) from error
    except OSError as error:
        raise StageUnavailable("a recording could not be decoded") from error
    if done.returncode == 1:
        reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        raise _unfit(f"'{param}' {reason or 'cannot be decoded'}.", param)
    if done.returncode != 0 or len(done.stdout) < 4:
        raise _unfit(f"'{param}' cannot be decoded: it is damaged, or no audio.", param)
    rate_hz = int.from_bytes(done.stdout[:4], "little")
    return np.frombuffer(done.stdout[4:], "<f4").astype(np.float32), rate_hz


def _unfit(message: str, param: str, code: str = "invalid_audio") -> InvalidRequest:
    return InvalidRequest(message, param, code)
