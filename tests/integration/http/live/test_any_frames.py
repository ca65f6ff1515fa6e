"""Whatever frames a client sends: no crash, no hang, nothing left behind.

A short run by default; TTS_FUZZ_EXAMPLES=2000 makes a long one.
"""

import asyncio
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.config import IngressConfig, LiveConfig
from tests.integration.http.service import Service

CONFIG = IngressConfig(max_input_chars=300, live=LiveConfig(idle_timeout_s=30.0))
TEXTS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        (
            "Hello. ",
            "Well, as I said, ",
            "今天天气很好。你好！",
            "مرحبا، كيف حالك؟ ",
            "<break time='1s'/>",
            "[pause 1s]",
            "<|im_end|>",
            "\ud83d",
            "\u0000\u202e",
            "x" * 400,
            "🎉🎉 ",
            "...",
        )
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
LIVE = st.one_of(
    st.builds(lambda text: {"type": "input.text", "text": text}, TEXTS),
    st.builds(lambda text: {"type": "input.text", "text": text}, JSON),
    st.sampled_from([{"type": f"input.{name}"} for name in ("flush", "done", "cancel")]),
    st.fixed_dictionaries(
        {"type": st.just("session.config")},
        optional={
            "voice": st.sampled_from(["alloy", "serena", None]) | JSON,
            "response_format": st.sampled_from(["pcm", "wav", "flac"]) | JSON,
            "split_granularity": st.sampled_from(["none", "clause"]) | JSON,
            "audio_transport": st.sampled_from(["base64"]) | JSON,
            "stream_audio": st.booleans() | JSON,
            "speed": st.floats(0.25, 4) | JSON,
            "normalization_options": JSON,
        },
    ),
)
MESSAGE = st.fixed_dictionaries(
    {"type": st.just("message"), "role": st.just("user")},
    optional={
        "content": st.lists(st.builds(lambda text: {"type": "input_text", "text": text}, TEXTS))
        | JSON
    },
)
OUTPUT = st.fixed_dictionaries(
    {},
    optional={
        "voice": st.sampled_from(["alloy", {"id": "serena"}]) | JSON,
        "speed": st.floats(0.25, 1.5) | JSON,
        "format": st.builds(lambda kind: {"type": kind}, st.sampled_from(["audio/pcmu"]) | JSON),
        "style": TEXTS | JSON,
    },
)
SESSION = st.builds(lambda output: {"audio": {"output": output}}, OUTPUT | JSON) | JSON
REALTIME = st.one_of(
    st.builds(lambda session: {"type": "session.update", "session": session}, SESSION),
    st.builds(lambda item: {"type": "conversation.item.create", "item": item}, MESSAGE | JSON),
    st.builds(
        lambda items, session, metadata: {
            "type": "response.create",
            "response": {"input": items, "metadata": metadata, "audio": session},
        },
        st.lists(MESSAGE, max_size=2) | JSON,
        st.builds(lambda output: {"output": output}, OUTPUT) | JSON,
        st.none() | JSON,
    ),
    st.builds(lambda response: {"type": "response.create", "response": response}, JSON),
    st.sampled_from([{"type": "response.create"}, {"type": "response.cancel"}]),
    st.builds(lambda fields: {"type": "conversation.item.truncate", "item_id": fields}, JSON),
)
TOGETHER = st.one_of(
    st.builds(lambda text: {"type": "input_text_buffer.append", "text": text}, TEXTS | JSON),
    st.sampled_from([{"type": f"input_text_buffer.{name}"} for name in ("commit", "clear")]),
    st.builds(
        lambda session: {"type": "tts_session.updated", "session": session},
        st.fixed_dictionaries(
            {},
            optional={
                "voice": st.sampled_from(["alloy", "serena"]) | JSON,
                "speed": st.floats(0.25, 4) | JSON,
                "extra_params": JSON,
            },
        )
        | JSON,
    ),
)
ANY = st.one_of(
    st.builds(lambda value: {"text": json.dumps(value)}, JSON),
    st.builds(lambda text: {"text": text}, st.text(max_size=20)),
    st.builds(lambda data: {"bytes": data}, st.binary(max_size=20)),
)


def frames(messages):
    known = st.builds(lambda message: {"text": json.dumps(message)}, messages)
    return st.lists(st.one_of(known, known, known, ANY), max_size=8)


def converse(service, path, given_frames):
    """The messages that a session sends for frames, with a pause here and there, and its close."""
    sent = []

    async def main():
        incoming = asyncio.Queue()
        incoming.put_nowait({"type": "websocket.connect"})
        for frame in given_frames:
            incoming.put_nowait({"type": "websocket.receive", **frame})

        async def send(message):
            sent.append(message)
            await asyncio.sleep(0)

        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
            "subprotocols": [],
            "root_path": "",
        }
        running = asyncio.create_task(service.app(scope, incoming.get, send))
        async with asyncio.timeout(20):
            # Some of it is heard, some is not.
            for _ in range(30):
                await asyncio.sleep(0)
            incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await running
        assert service.idle
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    for message in sent:
        if message.get("text") is not None:
            content = json.loads(message["text"])
            assert content["type"]
            if content["type"] in ("error", "conversation.item.tts.failed"):
                assert content["error"]["type"] == "invalid_request_error", content
    return sent


CONFIGURED = {"text": json.dumps({"type": "session.config", "response_format": "pcm"})}


def check(num_examples, messages):
    """A decorator: call the test with lists of frames."""
    stated = os.environ.get("TTS_FUZZ_EXAMPLES")
    options = settings(
        max_examples=int(stated or num_examples),
        deadline=None,
        database=None,
        derandomize=stated is None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: options(given(frames(messages))(test))


@pytest.fixture(scope="module")
def service():
    return Service(config=CONFIG, num_frames=3)


@pytest.mark.parametrize(("first", "num_examples"), [([], 15), ([CONFIGURED], 60)])
def test_no_frame_breaks_a_session_for_text_in_pieces(service, first, num_examples):
    @check(num_examples, LIVE)
    def run(given_frames):
        sent = converse(service, "/v1/audio/speech/stream", [*first, *given_frames])
        codes = [message["code"] for message in sent if message["type"] == "websocket.close"]
        assert set(codes) <= {1000, 1008}

    run()


def test_no_frame_breaks_a_session_in_togethers_words(service):
    @check(40, TOGETHER)
    def run(given_frames):
        sent = converse(service, "/v1/audio/speech/websocket", given_frames)
        assert json.loads(sent[1]["text"])["type"] == "session.created"
        assert all(message["type"] != "websocket.close" for message in sent)

    run()


def test_no_frame_breaks_a_realtime_session(service):
    @check(60, REALTIME)
    def run(given_frames):
        sent = converse(service, "/v1/realtime", given_frames)
        assert json.loads(sent[1]["text"])["type"] == "session.created"
        # Whatever it is told, it stays open.
        assert all(message["type"] != "websocket.close" for message in sent)

    run()
