"""Recordings that a server has never seen, and what it takes until their voice speaks."""

import asyncio
import base64
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import numpy as np

from load_tests.loops.client import AudioShape, SpeechClient
from load_tests.loops.workload import SpeechCall
from load_tests.several.settings import VOICE
from serve_app.cli.recordings import wav_file

_HZ: Final = 24000
_SAID: Final = "What is said in the recording, more or less as long as it is."
_TEXT: Final = "Please leave your name and number, and we will call you back today."
_FRAMES: Final = 4
_KEPT_S: Final = 10
# While an encoder starts, whoever asks is told to come again.
_AGAIN_S: Final = 0.25
_ENCODER_S: Final = 120.0
# Another ingress may take a second to know a voice, and a busy machine longer to say so.
_KNOWN_S: Final = 5.0


@dataclass(slots=True)
class Voices:
    """What voices of recordings took, in ms.

    first_ms: until the voice of the library was first heard; where it `is_new`, from its upload on,
        so that an encoder had to start.
    new_ms, again_ms: by seconds of the recording that a request brings, the first time and the
        second: medians of first audio.
    voice_ms: of the new ones what of it was the voice, by `Server-Timing`.
    stored_ms: with a voice of the library, encoded before: in context, and its vector alone.
    """

    first_ms: float
    is_new: bool
    new_ms: dict[int, float] = field(default_factory=dict[int, float])
    voice_ms: dict[int, float] = field(default_factory=dict[int, float])
    again_ms: dict[int, float] = field(default_factory=dict[int, float])
    stored_ms: dict[str, float] = field(default_factory=dict[str, float])


class Failed(Exception):
    """A request that everything else needs was refused."""


def recording(seconds: float, seed: int) -> bytes:
    """A WAV file of 24 kHz mono whose content depends on `seed` alone: a tone under noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * _HZ)) / _HZ
    tone = 0.2 * np.sin(2 * np.pi * (120 + 10 * (seed % 16)) * t)
    samples = tone + 0.05 * rng.standard_normal(len(t))
    return wav_file((32767 * samples.clip(-1, 1)).astype("<i2").tobytes(), _HZ)


async def keep_voice(
    url: str, model: str, timeout_s: float = _ENCODER_S, known_s: float = _KNOWN_S
) -> Voices:
    """Bring the voice that the load speaks with, unless the library has it, and hear it.

    For `known_s` an ingress may say that there is no such voice.

    Raises:
        Failed: it was refused, or not there in time.
    """
    began_s = time.perf_counter()
    async with aiohttp.ClientSession(url) as http:
        async with http.get(f"/v1/audio/voices/{VOICE}") as known:
            is_new = known.status != 200
        if is_new:
            form = aiohttp.FormData({"name": VOICE, "ref_text": _SAID, "language": "en"})
            form.add_field("audio_sample", recording(_KEPT_S, 0), filename="bench.wav")
            async with http.post("/v1/audio/voices", data=form) as made:
                if made.status >= 300:
                    raise Failed(f"the voice: {made.status}: {(await made.text())[:300]}")
    async with SpeechClient(url, AudioShape(), timeout_s) as client:
        heard_s = await _until_heard(client, _call(model, {"voice": VOICE}), timeout_s, known_s)
    return Voices(1000 * (heard_s - began_s), is_new)


async def _until_heard(
    client: SpeechClient, call: SpeechCall, timeout_s: float, known_s: float = 0.0
) -> float:
    """When its first audio was there; asked again as long as an encoder has to start, and for
    `known_s` when it is refused, as by an ingress that does not know the voice yet.

    Raises:
        Failed: it was refused for another reason, or for too long.
    """
    began_s = time.perf_counter()
    while True:
        result = await client.speak(call)
        if result.ok and result.first_playable_s is not None:
            return result.sent_at_s + result.first_playable_s
        limits_s = {400: known_s, 404: timeout_s, 503: timeout_s}
        if time.perf_counter() > began_s + limits_s.get(result.status, 0.0):
            raise Failed(f"speech with a voice: {result.detail}")
        await asyncio.sleep(_AGAIN_S)


async def measure(
    voices: Voices, url: str, model: str, seconds: list[int], count: int, seed: int
) -> None:
    """Ask with recordings in the request and with the stored voice, one request at a time.

    Raises:
        Failed: one of them was refused.
    """
    async with SpeechClient(url, AudioShape()) as client:

        async def heard(fields: Mapping[str, Any]) -> tuple[float, float]:
            result = await client.speak(_call(model, fields))
            if not result.ok or result.first_playable_s is None:
                raise Failed(result.detail)
            return 1000 * result.first_playable_s, 1000 * result.server_s.get("voice", 0.0)

        # A library that has all voices encoded leaves the encoder to whoever brings another one.
        await _until_heard(client, _call(model, _brought(recording(3, 999 + seed))), _ENCODER_S)
        for length in seconds:
            new: list[float] = []
            own: list[float] = []
            again: list[float] = []
            for number in range(count):
                data = recording(length, 1000 * (seed + 1) + 100 * length + number)
                fields = _brought(data)
                first, voice = await heard(fields)
                new.append(first)
                own.append(voice)
                again.append((await heard(fields))[0])
            voices.new_ms[length] = statistics.median(new)
            voices.voice_ms[length] = statistics.median(own)
            voices.again_ms[length] = statistics.median(again)
        for name, more in (("in context", {}), ("vector alone", {"x_vector_only_mode": True})):
            fields = {"voice": VOICE, **more}
            found = [(await heard(fields))[0] for _ in range(2 * count + 1)]
            voices.stored_ms[name] = statistics.median(found[1:])


def _brought(data: bytes) -> dict[str, str]:
    """The fields of a request that brings its recording."""
    source = "data:audio/wav;base64," + base64.b64encode(data).decode()
    return {"ref_audio": source, "ref_text": _SAID}


def _call(model: str, fields: Mapping[str, Any]) -> SpeechCall:
    body = {
        "model": model,
        "input": _TEXT,
        "language": "english",
        "response_format": "pcm",
        "stream": True,
        "seed": 1,
        "min_new_tokens": _FRAMES,
        "max_new_tokens": _FRAMES,
        **fields,
    }
    return SpeechCall(0, json.dumps(body).encode(), _FRAMES)
