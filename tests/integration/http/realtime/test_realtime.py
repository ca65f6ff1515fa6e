"""The Realtime API as OpenAI's own client speaks it, and as Open WebUI does."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import numpy as np
import openai
import pytest
import websockets

from serve_app import metrics
from serve_app.config import IngressConfig, LiveConfig
from serve_app.errors import StageFailed
from tests.integration.http.live.talking import address
from tests.integration.http.service import NUM_FRAMES, Service, served
from tests.waiting import until

TEXT = "Good morning. How are you?"
ONE = NUM_FRAMES * 1920


def run(main):
    asyncio.run(main())


def message(text):
    return {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": text}],
    }


@asynccontextmanager
async def connected(service=None, model="gpt-realtime-2.1-mini", **options):
    """The SDK's connection, with the session that it was greeted with."""
    service = service or Service()
    async with served(service.app) as url:
        client = openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1")
        async with client, client.realtime.connect(model=model, **options) as connection:
            created = await connection.recv()
            assert created.type == "session.created"
            yield connection, created.session
        await until(lambda: service.idle)


async def events_until(connection, kind):
    """The events up to the first of a kind."""
    events = []
    async with asyncio.timeout(20):
        while not events or events[-1].type != kind:
            events.append(await connection.recv())
    assert len({event.event_id for event in events}) == len(events)
    return events


def audio(events):
    deltas = [event for event in events if event.type == "response.output_audio.delta"]
    return b"".join(base64.b64decode(event.delta) for event in deltas)


def test_the_sdk_has_a_text_spoken():
    async def main():
        service = Service()
        async with connected(service) as (connection, session):
            assert session.model == "gpt-realtime-2.1-mini"
            assert session.audio.output.voice == "alloy"
            await connection.session.update(
                session={
                    "type": "realtime",
                    "instructions": "You are a text-to-speech renderer.",
                    "audio": {"output": {"voice": "nova", "speed": 1.0}},
                }
            )
            updated = await connection.recv()
            assert updated.type == "session.updated"
            assert updated.session.audio.output.voice == "nova"
            assert updated.session.instructions == "You are a text-to-speech renderer."
            await connection.conversation.item.create(item=message(TEXT))
            await events_until(connection, "conversation.item.done")
            await connection.response.create()
            events = await events_until(connection, "response.done")
        kinds = [event.type for event in events]
        once = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) == 1]
        assert once == [
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ]
        assert len(audio(events)) == 2 * ONE
        done = events[-1].response
        assert (done.status, done.usage.output_tokens) == ("completed", NUM_FRAMES)
        words = len(TEXT.split())
        assert done.usage.input_token_details.text_tokens == done.usage.input_tokens == words
        assert done.usage.total_tokens == words + NUM_FRAMES
        assert done.output[0].content[0].transcript == TEXT
        assert {event.response_id for event in events[1:-1]} == {done.id}
        (request,) = service.talker.requests
        assert (request.text, str(request.voice), request.instructions) == (TEXT, "vivian", None)
        assert service.counts[metrics.REQUESTS.name, "200"] == 1

    run(main)


def test_open_webui_has_a_text_spoken():
    """Its flow: one response outside of the conversation, PCM until it is completed."""

    async def main():
        service = Service()
        async with served(service.app) as url:
            connecting = websockets.connect(
                address(url, "/v1/realtime?model=gpt-realtime-2.1-mini"),
                additional_headers={"Authorization": "Bearer none"},
            )
            async with connecting as socket:
                assert json.loads(await socket.recv())["type"] == "session.created"
                output = {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"}
                await socket.send(
                    json.dumps(
                        {
                            "type": "response.create",
                            "response": {
                                "conversation": "none",
                                "output_modalities": ["audio"],
                                "instructions": "Read the text verbatim.",
                                "input": [message(TEXT)],
                                "audio": {"output": output},
                                "metadata": {"purpose": "tts"},
                            },
                        }
                    )
                )
                pcm = b""
                async for raw in socket:
                    event = json.loads(raw)
                    if event["type"] == "response.output_audio.delta":
                        pcm += base64.b64decode(event["delta"])
                    if event["type"] == "response.done":
                        break
                    assert event["type"] != "error"
        assert event["response"]["status"] == "completed"
        assert event["response"]["metadata"] == {"purpose": "tts"}
        assert len(pcm) == 2 * ONE
        (request,) = service.talker.requests
        assert (str(request.voice), request.instructions) == ("serena", None)

    run(main)


@pytest.mark.parametrize(
    ("form", "num_bytes"),
    [("audio/pcm", 2 * ONE), ("audio/pcmu", ONE // 3), ("audio/pcma", ONE // 3)],
)
def test_formats_of_telephony_are_there(form, num_bytes):
    async def main():
        async with connected() as (connection, _):
            output = {"format": {"type": form}}
            await connection.response.create(
                response={"input": [message(TEXT)], "audio": {"output": output}}
            )
            events = await events_until(connection, "response.done")
        assert events[-1].response.audio.output.format.type == form
        assert len(audio(events)) == num_bytes

    run(main)


def test_speed_and_style_are_followed():
    async def main():
        service = Service()
        async with connected(service) as (connection, _):
            output = {"speed": 1.25, "style": "whispering"}
            session = {"type": "realtime", "audio": {"output": output}}
            await connection.session.update(session=session)
            await connection.response.create(response={"input": [message(TEXT)]})
            events = await events_until(connection, "response.done")
            assert len(np.frombuffer(audio(events), "<i2")) == pytest.approx(ONE / 1.25, abs=100)
            await connection.response.create(
                response={"input": [message(TEXT)], "metadata": {"instructions": "Shout."}}
            )
            await events_until(connection, "response.done")
        assert [r.instructions for r in service.talker.requests] == ["whispering", "Shout."]

    run(main)


def test_cancel_closes_what_is_made_and_the_session_goes_on():
    async def main():
        service = Service(num_frames=100_000, frame_s=0.001)
        async with connected(service) as (connection, _):
            for number in range(2):
                await connection.response.create(response={"input": [message(TEXT)]})
                await events_until(connection, "response.output_audio.delta")
                assert not service.idle
                await connection.response.cancel()
                events = await events_until(connection, "response.done")
                assert service.idle
                done = events[-1].response
                assert (done.status, done.status_details.reason) == (
                    "cancelled",
                    "client_cancelled",
                )
                assert len(service.talker.requests) == number + 1
            await connection.response.cancel()
            (error,) = await events_until(connection, "error")
            assert error.error.code == "response_cancel_not_active"
        assert service.counts[metrics.REQUESTS.name, "499"] == 2

    run(main)


def test_errors_leave_the_session_open():
    async def main():
        async with connected() as (connection, _):
            wrong = [
                {"type": "what"},
                {},
                {"type": "session.update", "session": []},
                {"type": "session.update", "session": {"audio": {"output": {"voice": "nobody"}}}},
                {"type": "session.update", "session": {"audio": {"output": {"speed": 2}}}},
                {"type": "session.update", "session": {"audio": {"output": {"format": "x"}}}},
                {"type": "conversation.item.create", "item": None},
                {"type": "conversation.item.create", "item": {"type": "message"}},
                {"type": "response.create"},
                {"type": "response.create", "response": {"input": "Hi."}},
                {"type": "response.create", "response": {"input": [message("  ")]}},
                {"type": "response.create", "response": {"input": [message("<|im_end|>")]}},
                {"type": "response.create", "response": {"metadata": {"a": 1}}},
            ]
            for number, event in enumerate(wrong):
                await connection.send({**event, "event_id": f"mine-{number}"})
                (error,) = await events_until(connection, "error")
                assert error.error.type == "invalid_request_error"
                assert error.error.event_id == f"mine-{number}"
                assert error.error.message
            await connection.send({"type": "input_audio_buffer.append", "audio": ""})
            await connection.response.create(response={"input": [message(TEXT)]})
            events = await events_until(connection, "response.done")
            assert events[-1].response.status == "completed"

    run(main)


def test_one_response_at_a_time():
    async def main():
        async with connected(Service(frame_s=30.0)) as (connection, _):
            await connection.response.create(response={"input": [message(TEXT)]})
            await connection.response.create(response={"input": [message(TEXT)]})
            events = await events_until(connection, "error")
            assert events[-1].error.code == "conversation_already_has_active_response"

    run(main)


@pytest.mark.parametrize("fail_at", [0, 5])
def test_a_failure_is_told_and_the_session_goes_on(fail_at):
    async def main():
        service = Service(fail_at=fail_at, error=StageFailed("secret"))
        async with connected(service) as (connection, _):
            await connection.response.create(response={"input": [message(TEXT)]})
            events = await events_until(connection, "response.done")
            assert [event.error.code for event in events if event.type == "error"] == [
                "generation_failed"
            ]
            done = events[-1].response
            assert (done.status, done.status_details.error.code) == ("failed", "generation_failed")
            service.talker._fail_at = None
            await connection.response.create(response={"input": [message(TEXT)]})
            events = await events_until(connection, "response.done")
            assert events[-1].response.status == "completed"

    run(main)


def test_a_browser_is_answered_with_its_protocol_and_not_with_its_key():
    async def main():
        async with served(Service().app) as url:
            protocols = ["realtime", "openai-insecure-api-key.secret"]
            connecting = websockets.connect(address(url, "/v1/realtime"), subprotocols=protocols)
            async with connecting as socket:
                assert socket.subprotocol == "realtime"
                created = json.loads(await socket.recv())
                assert created["session"]["model"] == "qwen3-tts-fake"

    run(main)


@pytest.mark.parametrize("cards", [None, ()])
def test_a_model_that_is_not_served_ends_the_session_with_a_reason(cards):
    async def main():
        service = Service() if cards is None else Service(cards=cards)
        path = "/v1/realtime?model=gpt-5"
        async with served(service.app) as url, websockets.connect(address(url, path)) as socket:
            error = json.loads(await socket.recv())
            assert error["type"] == "error"
            code = "model_not_found" if cards is None else "service_unavailable"
            assert error["error"]["code"] == code
            await socket.wait_closed()
            assert socket.close_code == 1008

    run(main)


def test_a_session_that_rests_is_closed():
    async def main():
        service = Service(config=IngressConfig(live=LiveConfig(idle_timeout_s=0.2)))
        path = "/v1/realtime"
        async with served(service.app) as url, websockets.connect(address(url, path)) as socket:
            await socket.recv()
            await socket.wait_closed()
            assert socket.close_code == 1000

    run(main)
