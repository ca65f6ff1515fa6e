"""`stream_format: "sse"` as LiveKit and scripts around OpenAI's client read it."""

import asyncio
import base64
import json

import httpx2
import pytest

from serve_app.audio.formats import AudioFormat
from serve_app.errors import StageFailed
from tests.integration.http.service import NUM_FRAMES, Service, create, samples, served
from tests.unit.audio.signals import decoded
from tests.waiting import until

SECONDS = NUM_FRAMES * 0.08


def read_events(text):
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def audio_of(events):
    deltas = [event for event in events if event["type"] == "speech.audio.delta"]
    return b"".join(base64.b64decode(event["audio"]) for event in deltas)


@pytest.mark.parametrize("audio_format", AudioFormat)
def test_every_format_comes_as_events_and_ends_with_its_usage(audio_format):
    async def main():
        service = Service()
        client = service.client().audio.speech
        async with client.with_streaming_response.create(
            model="gpt-4o-mini-tts",
            voice="ash",
            input="Hello there.",
            response_format=audio_format,
            stream_format="sse",
        ) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["x-sample-rate"] == "24000"
            assert "content-disposition" not in response.headers
            events = read_events("\n".join([line async for line in response.iter_lines()]))
        assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
        assert events[-1] == {
            "type": "speech.audio.done",
            "usage": {
                "input_tokens": 2,
                "output_tokens": NUM_FRAMES,
                "total_tokens": NUM_FRAMES + 2,
                "input_token_details": {"text_tokens": 2, "audio_tokens": 0},
                "audio_duration_seconds": SECONDS,
            },
            "finish_reason": "stop",
        }
        assert service.idle
        data = audio_of(events)
        if audio_format is AudioFormat.PCM:
            assert len(data) == 2 * NUM_FRAMES * 1920
        else:
            audio, rate_hz = decoded(data)
            assert SECONDS - 0.001 <= len(audio) / rate_hz < SECONDS + 0.13

    asyncio.run(main())


def test_the_events_hold_the_same_samples_as_the_body():
    response = asyncio.run(create(Service(), response_format="pcm", stream_format="sse"))
    assert audio_of(read_events(response.text)) == samples().tobytes()


def test_the_last_event_says_that_a_limit_cut_the_audio():
    response = asyncio.run(
        create(Service(), stream_format="sse", extra_body={"max_new_tokens": NUM_FRAMES - 1})
    )
    last = read_events(response.text)[-1]
    assert (last["type"], last["finish_reason"]) == ("speech.audio.done", "length")
    assert last["usage"]["output_tokens"] == NUM_FRAMES - 1


def test_a_client_may_ask_by_the_accept_header():
    async def main():
        async with Service().http() as http:
            response = await http.post(
                "/v1/audio/speech",
                json={"input": "Hello."},
                headers={"Accept": "text/event-stream"},
            )
        assert read_events(response.text)[-1]["type"] == "speech.audio.done"

    asyncio.run(main())


def test_what_breaks_off_says_so_and_then_breaks_off():
    async def main():
        service = Service(fail_at=5, error=StageFailed("secret path"))
        text = ""
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            body = {"input": "Hello.", "response_format": "pcm", "stream_format": "sse"}
            async with http.stream("POST", f"{url}/v1/audio/speech", json=body) as response:
                pieces = response.aiter_text()
                while not text.count('"error"'):
                    text += await anext(pieces)
                with pytest.raises(httpx2.RemoteProtocolError):
                    await anext(pieces)
        *deltas, last = read_events(text)
        assert deltas
        assert last["type"] == "error"
        assert set(last["error"]) == {"message", "type", "param", "code"}
        assert "secret" not in text
        assert service.idle

    asyncio.run(main())


def test_what_fails_before_the_first_audio_is_an_error_with_a_status():
    async def main():
        service = Service(fail_at=0, error=StageFailed("broken"))
        async with service.http() as http:
            response = await http.post(
                "/v1/audio/speech", json={"input": "Hello.", "stream_format": "sse"}
            )
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"

    asyncio.run(main())


def test_a_client_that_leaves_frees_everything():
    async def main():
        service = Service(frame_s=0.01, num_frames=500)
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            body = {"input": "Hello.", "stream_format": "sse"}
            async with http.stream("POST", f"{url}/v1/audio/speech", json=body) as response:
                await anext(response.aiter_bytes())
            await until(lambda: service.idle)

    asyncio.run(main())
