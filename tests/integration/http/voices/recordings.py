"""Recordings as clients send them, made here, and services that have a voice library."""

import io

import av
import numpy as np
import soundfile

from serve_app.config import AccessConfig, IngressConfig, VoicesConfig
from serve_app.fakes import FakeVoiceEncoder, fake_card
from tests.integration.http.service import Service

BASE = fake_card(task="base", name="base", voices=(), path="fakes/base")
VOICES = "/v1/audio/voices"
SPEECH = "/v1/audio/speech"


def tone(seconds, hz=24000, channels=1, pitch_hz=220.0):
    t = np.arange(int(seconds * hz)) / hz
    samples = (0.3 * np.sin(2 * np.pi * pitch_hz * t)).astype(np.float32)
    return samples if channels == 1 else np.stack([samples] * channels, axis=1)


def sound_file(samples, kind="WAV", subtype=None, hz=24000):
    """What libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, samples, hz, format=kind, subtype=subtype)
    return file.getvalue()


def container(samples, kind, codec, picture=None, tracks=1):
    """What FFmpeg writes of 48 kHz: float32 [N], beside it a track of moving pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as out:
        streams = [out.add_stream(codec, rate=48000, layout="mono") for _ in range(tracks)]
        film = out.add_stream(picture, rate=10) if picture else None
        if film is not None:
            film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts = 0
            out.mux([*film.encode(frame), *film.encode(None)])
        for stream in streams:
            context = stream.codec_context
            frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
            frame.rate = 48000
            pieces = av.AudioResampler(
                context.format, "mono", 48000, frame_size=context.frame_size or 960
            )
            for piece in [*pieces.resample(frame), *pieces.resample(None)]:
                out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
    return file.getvalue()


WAV = sound_file(tone(2))


def config_of(folder, access=None, **voices):
    fields = {"access": AccessConfig(**access)} if access else {}
    voices = {"path": str(folder / "voices"), **voices}
    return IngressConfig(voices=VoicesConfig(**voices), **fields)


def cloning(folder, cards=(BASE,), config=None, **voices):
    """A service that clones, its library in `folder`."""
    encoder = FakeVoiceEncoder()
    return Service(cards, config=config or config_of(folder, **voices), encoder=encoder)


async def upload(http, name, data=WAV, headers=None, **fields):
    files = {"audio_sample": ("clip.wav", data, "audio/wav")}
    response = await http.post(VOICES, data={"name": name, **fields}, files=files, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def spoken(http, headers=None, **fields):
    body = {"input": "Hello.", "response_format": "pcm", "seed": 3, **fields}
    return await http.post(SPEECH, json=body, headers=headers)
