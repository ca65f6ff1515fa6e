"""What vllm-omni's example clients for Qwen3-TTS send, and how they read the answers: replayed from
its examples/online_serving/qwen3_tts.
"""

import asyncio
import base64
import io
import json

import numpy as np
import soundfile
import websockets

from serve_app.fakes import fake_card
from serve_app.types import ClonedVoice, NamedVoice
from tests.integration.http.service import NUM_FRAMES, served
from tests.integration.http.voices.recordings import SPEECH, VOICES, WAV, cloning, upload

HUB = "Qwen/Qwen3-TTS-12Hz-1.7B-"
CARDS = (
    fake_card(name=f"{HUB}CustomVoice", path="fakes/custom"),
    fake_card(name=f"{HUB}Base", task="base", voices=(), path="fakes/base"),
    fake_card(name=f"{HUB}VoiceDesign", task="voice_design", voices=(), path="fakes/design"),
)
EMPTY = {"Authorization": "Bearer EMPTY"}
URL = "data:audio/wav;base64," + base64.b64encode(WAV).decode()


def test_the_speech_client_gets_what_each_of_its_tasks_asks_for(tmp_path):
    """It names a speaker for every task."""
    asked = {"input": "Hello, how are you?", "voice": "Vivian", "response_format": "wav"}
    design = {"task_type": "VoiceDesign", "instructions": "A warm, friendly female voice"}
    base = {"task_type": "Base", "ref_audio": URL}
    bodies = [
        {"model": f"{HUB}CustomVoice", **asked},
        {"model": f"{HUB}CustomVoice", **asked, "instructions": "With excitement"},
        {"model": f"{HUB}VoiceDesign", **asked, **design},
        {"model": f"{HUB}Base", **asked, **base, "ref_text": "Good morning.", "language": "Auto"},
        {"model": f"{HUB}Base", **asked, **base, "x_vector_only_mode": True, "max_new_tokens": 9},
    ]

    async def main():
        service = cloning(tmp_path, cards=CARDS)
        async with service.http() as http:
            for body in bodies:
                answer = await http.post(SPEECH, json=body, headers=EMPTY)
                assert answer.status_code == 200, answer.text
                samples, rate_hz = soundfile.read(io.BytesIO(answer.content))
                frames = min(NUM_FRAMES, body.get("max_new_tokens", NUM_FRAMES))
                assert (len(samples), rate_hz) == (frames * 1920, 24000)
        requests = service.talker.requests
        assert [r.model for r in requests] == [body["model"] for body in bodies]
        assert [r.instructions for r in requests[:3]] == [
            None,
            "With excitement",
            "A warm, friendly female voice",
        ]
        named, _, designed, in_context, vector_only = [r.voice for r in requests]
        assert named == NamedVoice("vivian")
        assert designed is None
        assert isinstance(in_context, ClonedVoice)
        assert in_context.reference_text == "Good morning."
        assert isinstance(vector_only, ClonedVoice)
        assert vector_only.reference_codes is None

    asyncio.run(main())


def test_the_demo_in_a_browser_finds_the_model_by_the_task(tmp_path):
    """It names none, sends languages as words and, where it streams, joins pieces of any size."""
    asked = {"input": "Hello.", "language": "English"}
    streamed = {"response_format": "pcm", "stream": True}
    whole = {"response_format": "flac", "stream": False, "speed": 1.0}
    bodies = [
        {**asked, **streamed, "task_type": "CustomVoice", "voice": "ryan"},
        {**asked, **whole, "task_type": "VoiceDesign", "instructions": "Calm."},
        {**asked, **streamed, "task_type": "Base", "ref_audio": URL, "ref_text": "Hi."},
        {**asked, **whole, "task_type": "Base", "ref_audio": URL, "x_vector_only_mode": True},
    ]

    async def main():
        service = cloning(tmp_path, cards=CARDS)
        async with service.http() as http:
            listed = (await http.get(VOICES, headers=EMPTY)).json()["voices"]
            assert listed
            for body in bodies:
                async with http.stream("POST", SPEECH, json=body, headers=EMPTY) as answer:
                    data = b"".join([piece async for piece in answer.aiter_bytes()])
                assert answer.status_code == 200, data
                assert "application/json" not in answer.headers["content-type"]
                if body["stream"]:
                    assert np.frombuffer(data, np.int16).shape == (NUM_FRAMES * 1920,)
                else:
                    assert len(soundfile.read(io.BytesIO(data))[0]) == NUM_FRAMES * 1920
        kinds = [r.model.removeprefix(HUB) for r in service.talker.requests]
        assert kinds == ["CustomVoice", "VoiceDesign", "Base", "Base"]

    asyncio.run(main())


def test_the_websocket_client_speaks_with_its_recording_and_with_an_uploaded_voice(tmp_path):
    config = {"language": "Auto", "response_format": "pcm", "speed": 1.0, "task_type": "Base"}
    configs = [
        {**config, "voice": "Vivian", "ref_audio": URL, "ref_text": "Good morning."},
        {**config, "voice": "custom"},
    ]

    async def heard(url, session):
        """As it does it: one array of pieces for each sentence."""
        done = []
        async with websockets.connect(url) as socket:
            await socket.send(json.dumps({"type": "session.config", **session}))
            for word in ("Hello ", "world."):
                await socket.send(json.dumps({"type": "input.text", "text": word}))
            await socket.send(json.dumps({"type": "input.done"}))
            pieces = []
            while True:
                message = await asyncio.wait_for(socket.recv(), 30)
                if isinstance(message, bytes):
                    pieces.append(message)
                    continue
                event = json.loads(message)
                assert event["type"] != "error", event
                if event["type"] == "audio.start":
                    assert event["sentence_text"] == "Hello world."
                    pieces = []
                elif event["type"] == "audio.done":
                    assert not event.get("error", False)
                    done.append((event["sentence_index"], b"".join(pieces)))
                elif event["type"] == "session.done":
                    assert event["total_sentences"] == len(done)
                    return done

    async def main():
        service = cloning(tmp_path, cards=CARDS)
        async with service.http() as http:
            await upload(http, "custom", ref_text="Hi there.")
        async with served(service.app) as address:
            url = f"ws{address.removeprefix('http')}{SPEECH}/stream"
            for session in configs:
                ((index, data),) = await heard(url, session)
                assert (index, len(data)) == (0, NUM_FRAMES * 1920 * 2)
        texts = [getattr(r.voice, "reference_text", None) for r in service.talker.requests]
        assert texts == ["Good morning.", "Hi there."]

    asyncio.run(main())
