"""Every format, speed and sample rate as OpenAI's client gets it."""

import asyncio

import httpx2
import numpy as np
import pytest

from serve_app.audio.formats import AudioFormat
from tests.integration.http.service import NUM_FRAMES, Service, create, samples, served
from tests.unit.audio.signals import decoded, pitch
from tests.waiting import until

every_format = pytest.mark.parametrize("audio_format", AudioFormat)
SECONDS = NUM_FRAMES * 0.08
CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm;rate=24000;channels=1",
}


def played(response):
    """float [N] of a response of the SDK and its rate."""
    headers = response.response.headers
    if headers["content-type"].startswith("audio/pcm"):
        audio = np.frombuffer(response.content, "<i2") / 32768
        return audio, int(headers["x-sample-rate"])
    return decoded(response.content)


def assert_the_voice_of_the_fakes(audio, rate_hz, seconds=SECONDS):
    assert seconds - 0.001 <= len(audio) / rate_hz <= seconds + 0.13
    assert pitch(audio, rate_hz) == pytest.approx(220, rel=0.01)


@every_format
@pytest.mark.parametrize("stream", [True, False])
def test_every_format_is_the_audio_of_the_model(audio_format, stream):
    service = Service()
    response = asyncio.run(
        create(service, response_format=audio_format, extra_body={"stream": stream})
    )
    headers = response.response.headers
    assert headers["content-type"] == CONTENT_TYPES[audio_format]
    assert headers["content-disposition"] == f'inline; filename="speech.{audio_format}"'
    assert ("content-length" in headers) == (not stream)
    assert_the_voice_of_the_fakes(*played(response))
    assert service.idle


def test_mp3_is_what_a_client_gets_that_asks_for_nothing():
    async def main():
        async with Service().http() as http:
            response = await http.post("/v1/audio/speech", json={"input": "Hello."})
        assert response.headers["content-type"] == "audio/mpeg"
        assert_the_voice_of_the_fakes(*decoded(response.content))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "served_as"), [("OGG", "opus"), ("mpeg", "mp3"), ("pcm16", "pcm")]
)
def test_formats_have_other_names(name, served_as):
    response = asyncio.run(create(Service(), response_format=name))
    assert response.response.headers["content-type"] == CONTENT_TYPES[served_as]


@every_format
@pytest.mark.parametrize("speed", [0.25, 1.5, 4.0])
def test_speed_changes_the_length_and_not_the_pitch(audio_format, speed):
    response = asyncio.run(create(Service(), response_format=audio_format, speed=speed))
    assert_the_voice_of_the_fakes(*played(response), SECONDS / speed)


@every_format
@pytest.mark.parametrize("rate_hz", [8000, 48000])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_may_choose_the_sample_rate(audio_format, rate_hz, stream):
    response = asyncio.run(
        create(
            Service(),
            response_format=audio_format,
            extra_body={"sample_rate": rate_hz, "stream": stream},
        )
    )
    headers = response.response.headers
    assert headers["x-sample-rate"] == headers["x-audio-sample-rate"] == str(rate_hz)
    audio, decoded_hz = played(response)
    assert decoded_hz == (48000 if audio_format is AudioFormat.OPUS else rate_hz)
    assert seconds_within_a_frame(audio, decoded_hz, rate_hz)
    assert pitch(audio, decoded_hz) == pytest.approx(220, rel=0.01)


def seconds_within_a_frame(audio, decoded_hz, rate_hz):
    # AAC's frames have 1024 samples, and it looks two ahead.
    return SECONDS - 0.001 <= len(audio) / decoded_hz <= SECONDS + 0.02 + 3 * 1024 / rate_hz


@every_format
def test_the_first_bytes_come_while_the_rest_is_made(audio_format):
    async def main():
        gate = asyncio.Event()
        calls = 0

        async def sleep(_):
            nonlocal calls
            calls += 1
            if calls > 3:  # AAC has nothing to give after the first frame of the model
                await gate.wait()

        service = Service(sleep=sleep, chunk_frames=(1, 1, 1, 4))
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            client = service.client(http).with_options(base_url=f"{url}/v1")
            async with client.audio.speech.with_streaming_response.create(
                model="tts-1", voice="nova", input="Hello.", response_format=audio_format
            ) as response:
                pieces = response.iter_bytes()
                data = await anext(pieces)
                gate.set()
                async for piece in pieces:
                    data += piece
        audio, rate_hz = (
            (np.frombuffer(data, "<i2"), 24000)
            if audio_format is AudioFormat.PCM
            else decoded(data)
        )
        assert_the_voice_of_the_fakes(audio, rate_hz)

    asyncio.run(main())


@every_format
def test_a_client_that_leaves_frees_everything(audio_format):
    async def main():
        service = Service(frame_s=0.01, num_frames=500)
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            body = {"input": "Hello.", "response_format": audio_format, "speed": 1.2}
            async with http.stream("POST", f"{url}/v1/audio/speech", json=body) as response:
                await anext(response.aiter_bytes())
                assert not service.idle
            await until(lambda: service.idle)

    asyncio.run(main())


def test_many_streams_of_all_formats_do_not_mix():
    async def main():
        service = Service(chunk_frames=(1,))
        formats = list(AudioFormat) * 6
        responses = await asyncio.gather(
            *(create(service, response_format=name, speed=1.25) for name in formats)
        )
        bodies = {}
        for name, response in zip(formats, responses, strict=True):
            assert_the_voice_of_the_fakes(*played(response), SECONDS / 1.25)
            bodies.setdefault(name, set()).add(response.content)
        # Each stream of Ogg has a number of its own; the others are alike.
        assert all(len(found) == 1 for name, found in bodies.items() if name != "opus")

    asyncio.run(main())


def test_whole_samples_stay_together():
    async def main():
        service = Service(chunk_frames=(1,))
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            body = {"input": "Hello.", "response_format": "pcm", "speed": 1.3, "sample_rate": 22050}
            async with http.stream("POST", f"{url}/v1/audio/speech", json=body) as response:
                async for piece in response.aiter_raw():
                    assert len(piece) % 2 == 0

    asyncio.run(main())


def test_bare_samples_at_the_models_rate_are_not_touched():
    response = asyncio.run(create(Service(), response_format="pcm", speed=1.0))
    assert response.content == samples().tobytes()
