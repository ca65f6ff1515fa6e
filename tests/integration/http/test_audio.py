"""The audio of a response, seen through the real OpenAI client."""

import asyncio
import io
import re
import wave
from dataclasses import replace

import httpx2
import numpy as np
import openai
import pytest

from serve_app import metrics
from serve_app.audio.formats import AudioFormat
from serve_app.audio.output import Output
from serve_app.audio.wav import wav_header
from serve_app.fakes import fake_card
from serve_app.types import PcmChunk
from tests.integration.http.service import (
    CARD,
    NUM_FRAMES,
    SEED,
    Service,
    create,
    samples,
    served,
)


def test_streamed_pcm_is_the_samples_of_the_model():
    service = Service()
    response = asyncio.run(create(service, response_format="pcm"))
    assert response.content == samples().tobytes()
    assert response.response.headers["content-type"] == "audio/pcm;rate=24000;channels=1"
    assert service.idle


def test_a_wav_streams_with_an_open_length():
    response = asyncio.run(create(Service()))
    headers = response.response.headers
    assert response.content == wav_header(24000) + samples().tobytes()
    assert headers["content-type"] == "audio/wav"
    assert "content-length" not in headers
    assert "x-finish-reason" not in headers
    assert "x-request-id" not in headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["content-disposition"] == 'inline; filename="speech.wav"'
    assert headers["x-audio-sample-rate"] == "24000"
    assert headers["x-audio-channels"] == "1"
    assert headers["x-sample-rate"] == "24000"
    assert headers["x-channels"] == "1"
    assert headers["x-ai-generated"] == "true"
    assert int(headers["openai-processing-ms"]) >= 0
    assert re.fullmatch(r"ingress;dur=\d+\.\d\d", headers["server-timing"])
    with wave.open(io.BytesIO(response.content)) as reader:
        assert reader.readframes(NUM_FRAMES * 1920) == samples().tobytes()


@pytest.mark.parametrize("response_format", list(AudioFormat))
def test_a_whole_file_has_the_same_samples_and_a_length(response_format):
    service = Service()
    response = asyncio.run(
        create(service, response_format=response_format, extra_body={"stream": False})
    )
    whole = Output(response_format, 24000).file(samples())
    # Each stream of Ogg has a number of its own.
    if response_format is AudioFormat.OPUS:
        assert len(response.content) == len(whole)
    else:
        assert response.content == whole
    assert int(response.response.headers["content-length"]) == len(response.content)
    headers = response.response.headers
    assert headers["x-finish-reason"] == "stop"
    used = [headers[f"x-usage-{kind}-tokens"] for kind in ("input", "output", "total")]
    (request,) = service.talker.requests
    words = len(request.text.split())
    assert used == [str(words), str(NUM_FRAMES), str(words + NUM_FRAMES)]
    assert service.idle


def test_what_all_units_of_a_text_have_read_is_counted():
    text = "[pause 0.1s] Good morning to you. [pause 0.1s] Good night."
    response = asyncio.run(create(Service(), input=text, extra_body={"stream": False}))
    assert response.response.headers["x-usage-input-tokens"] == "6"


def test_a_limit_of_tokens_ends_the_audio_and_says_so():
    service = Service()
    response = asyncio.run(create(service, extra_body={"stream": False, "max_tokens": 3}))
    assert response.content == Output(AudioFormat.WAV, 24000).file(samples(3))
    assert response.response.headers["x-finish-reason"] == "length"


def test_the_streaming_client_gets_the_first_chunk_while_the_rest_is_made():
    async def main():
        gate = asyncio.Event()
        calls = 0

        async def sleep(_):
            nonlocal calls
            calls += 1
            if calls == 3:
                await gate.wait()

        service = Service(sleep=sleep)
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            client = service.client(http).with_options(base_url=f"{url}/v1")
            async with client.audio.speech.with_streaming_response.create(
                model="tts-1",
                voice="nova",
                input="Hello.",
                response_format="wav",
                extra_body={"seed": SEED},
            ) as response:
                pieces = response.iter_bytes()
                data = await anext(pieces)
                assert data == wav_header(24000) + samples(1).tobytes()
                gate.set()
                async for piece in pieces:
                    data += piece
        assert data == wav_header(24000) + samples().tobytes()
        assert service.idle

    asyncio.run(main())


def test_the_short_path_works_and_the_metrics_are_recorded():
    async def main():
        service = Service()
        async with service.http() as http:
            response = await http.post(
                "/audio/speech", json={"input": "Hello.", "seed": SEED, "response_format": "wav"}
            )
        assert response.content == wav_header(24000) + samples().tobytes()
        assert service.counts == {
            (metrics.REQUESTS.name, "200"): 1,
            (metrics.FINISHED.name, "stop"): 1,
        }
        assert service.observed == [
            metrics.TIME_TO_FIRST_AUDIO.name,
            metrics.STREAM_UNDERRUN.name,
            metrics.REQUEST_DURATION.name,
            metrics.AUDIO_DURATION.name,
            metrics.AUDIO_RTF.name,
            metrics.REQUEST_QUEUE.name,
        ]
        assert service.sums == {
            metrics.AUDIO_SECONDS.name: 0.8,
            metrics.CODEC_FRAMES.name: NUM_FRAMES,
            metrics.INPUT_CHARACTERS.name: 6,
        }

    asyncio.run(main())


def test_where_a_request_waited_is_in_its_line_and_in_the_metrics(caplog):
    class Waiting(Service):
        def speak(self, request):
            return self.told(super().speak(request))

        async def told(self, chunks):
            timings = (("talker_queue", 0.25), ("talker", 0.5), ("replica", 0.125))
            async for chunk in chunks:
                yield replace(chunk, timings=() if chunk.first_sample else timings)

        def observe(self, metric, value, **labels):
            super().observe(metric, value, **labels)
            if metric is metrics.REQUEST_QUEUE:
                waits[labels["at"]] = value

    waits = {}
    caplog.set_level("INFO", "serve_app")
    asyncio.run(create(Waiting()))
    assert "talker_queue_ms=250.0 talker_ms=500.0 replica_ms=125.0" in caplog.text
    assert waits == {"talker_queue": 0.25, "replica": 0.125, "ingress": 0.0}


def test_the_log_names_the_voice(caplog):
    caplog.set_level("INFO", "serve_app")
    asyncio.run(create(Service(), voice="ryan"))
    assert "voice=ryan" in caplog.text
    assert "characters=6" in caplog.text
    assert "finish_reason=stop" in caplog.text


def test_instructions_that_the_model_ignores_are_reported_in_a_header():
    service = Service(cards=(fake_card(supports_instructions=False),))
    response = asyncio.run(create(service, instructions="Whisper."))
    assert response.response.headers["x-warning"].startswith("instructions ignored")
    assert "x-warning" not in asyncio.run(create(service, instructions="None")).response.headers


def test_a_field_that_is_almost_one_that_there_is_is_named_in_a_header():
    def warned(**fields):
        made = asyncio.run(create(Service(), extra_body=fields))
        return made.response.headers.get("x-warning")

    assert warned(respone_format="pcm") is None  # the right one is there as well
    assert warned(samplerate=8000, temprature=0.5, temperatur=0.5) == (
        "unknown field 'samplerate' ignored, is 'sample_rate' meant?;"
        " unknown field 'temprature' ignored, is 'temperature' meant?;"
        " unknown field 'temperatur' ignored, is 'temperature' meant?"
    )
    # Those of other servers' clients, and what does not belong into a header.
    others = {"speaker_id": 1, "volume": 1.0, "": 1, "temperature\r\n": 1, "temperaturé": 1}
    assert warned(**others) is None
    assert warned(**{f"temperature{n}": 1 for n in range(100)}).count("meant?") <= 8


@pytest.mark.parametrize("voice", ["alloy", "nobody", {"id": "voice_1"}])
def test_a_designed_voice_is_made_whatever_voice_the_client_must_name(voice):
    service = Service(cards=(fake_card(task="voice_design", voices=()),))
    asyncio.run(create(service, voice=voice, instructions="Old and warm."))
    (request,) = service.talker.requests
    assert request.voice is None
    assert request.instructions == "Old and warm."


def test_the_limit_of_tokens_is_the_one_of_the_card():
    service = Service(cards=(fake_card(max_new_tokens=12),))
    asyncio.run(create(service, extra_body={"max_new_tokens": 12}))
    for field in ("max_new_tokens", "max_tokens", "min_new_tokens"):
        with pytest.raises(openai.BadRequestError, match="12"):
            asyncio.run(create(service, extra_body={field: 13}))
    assert len(service.talker.requests) == 1


def test_the_id_of_the_client_is_used_where_it_is_well_formed():
    async def main():
        service = Service()
        async with service.http() as http:
            for request_id in ("req_1", "req_1", "no spaces, please"):
                headers = {"x-request-id": request_id}
                response = await http.post(
                    "/v1/audio/speech", json={"input": "Hello."}, headers=headers
                )
                assert "x-request-id" not in response.headers
        first, second, third = (request.request_id for request in service.talker.requests)
        assert first.startswith("req_1-")
        assert second.startswith("req_1-")
        assert first != second
        assert "please" not in third

    asyncio.run(main())


@pytest.mark.parametrize("stream", [True, False])
def test_audio_that_a_limit_cut_short_is_counted(stream, caplog):
    service = Service(num_frames=100)
    asyncio.run(create(service, extra_body={"stream": stream, "max_tokens": 3}))
    assert service.counts[metrics.FINISHED.name, "length"] == 1
    assert "no room" not in caplog.text


def test_audio_that_is_cut_short_although_nobody_asked_for_it_is_in_the_log(caplog):
    class Full(Service):
        async def speak(self, request):
            yield PcmChunk(np.zeros(10, np.int16), 0, np.zeros((1, 4), np.int64), "length")

    asyncio.run(create(Full()))
    assert "no room for all of the text" in caplog.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("second", [5, 15, 20])
def test_a_missing_or_double_sample_breaks_the_audio_off(stream, second):
    class Torn(Service):
        async def speak(self, request):
            codes = np.zeros((1, 4), np.int64)
            yield PcmChunk(np.zeros(10, np.int16), 0, codes)
            yield PcmChunk(np.zeros(10, np.int16), second, codes, "stop")

    async def main():
        service = Torn()
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            body = {"input": "Hello.", "stream": stream, "response_format": "pcm"}
            call = http.post(f"{url}/v1/audio/speech", json=body)
            if stream:
                with pytest.raises(httpx2.RemoteProtocolError):
                    await call
            else:
                assert (await call).status_code == 500

    asyncio.run(main())


def test_a_model_is_served_from_the_moment_it_is_in_the_catalog():
    async def main():
        service = Service(cards=())
        async with service.http() as http:
            response = await http.post("/v1/audio/speech", json={"input": "Hello."})
            assert response.status_code == 503
            assert (await http.get("/v1/models")).json()["data"] == []
            assert (await http.get("/health")).json()["models"] == []
            service.catalog.add(CARD)
            response = await http.post("/v1/audio/speech", json={"input": "Hello."})
            assert response.status_code == 200
            assert (await http.get("/v1/models/tts-1")).json()["id"] == CARD.name

    asyncio.run(main())
