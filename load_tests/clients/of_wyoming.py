"""wyoming-openai, the bridge to Home Assistant, as a program: `python of_wyoming.py BASE_URL`.

A JSON line a case: a text as a whole, and one in pieces, as a language model sends them.
"""

import array
import asyncio
import json
import os
import socket
import subprocess
import sys
import time

from wyoming.audio import AudioChunk, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

TEXT = "Good morning. This is a sentence for a house to say."
VOICE = SynthesizeVoice(name="alloy")
START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def whole(client: AsyncTcpClient) -> None:
    await client.write_event(Synthesize(text=TEXT, voice=VOICE).event())


async def in_pieces(client: AsyncTcpClient) -> None:
    await client.write_event(SynthesizeStart(voice=VOICE).event())
    for word in TEXT.split(" "):
        await client.write_event(SynthesizeChunk(text=f"{word} ").event())
        await asyncio.sleep(0.03)
    await client.write_event(SynthesizeStop().event())


CASES = {"whole": (whole, AudioStop, 1), "in pieces": (in_pieces, SynthesizeStopped, 2)}


async def spoken(port: int, case: str) -> dict:
    send, end, requests = CASES[case]
    asked_s, first_s = time.perf_counter(), None
    audio, rate_hz = array.array("h"), 0
    async with AsyncTcpClient("127.0.0.1", port) as client:
        sending = asyncio.create_task(send(client))
        while True:
            event: Event | None = await asyncio.wait_for(client.read_event(), 60)
            if event is None or Error.is_type(event.type):
                raise SystemExit(f"wyoming, {case}: {event}")
            if AudioChunk.is_type(event.type):
                first_s = first_s or time.perf_counter() - asked_s
                chunk = AudioChunk.from_event(event)
                rate_hz = chunk.rate
                audio.frombytes(chunk.audio)
            if end.is_type(event.type):
                break
        await sending
    return {
        "case": case,
        "audio_s": len(audio) / rate_hz if rate_hz else 0.0,
        "loudest": max(map(abs, audio), default=0),
        "first_audio_s": first_s,
        "requests": requests,
    }


async def described(port: int) -> list[str]:
    """The voices that the bridge offers, once it is there."""
    end_s = time.monotonic() + START_S
    while True:
        try:
            async with AsyncTcpClient("127.0.0.1", port) as client:
                await client.write_event(Describe().event())
                event = await asyncio.wait_for(client.read_event(), 10)
                assert event is not None
                programs = Info.from_event(event).tts
                return [voice.name for program in programs for voice in program.voices]
        except OSError:
            if time.monotonic() > end_s:
                raise
            await asyncio.sleep(0.2)


async def main(url: str) -> None:
    port = free_port()
    bridge = subprocess.Popen(
        [
            *(sys.executable, "-m", "wyoming_openai", "--uri", f"tcp://127.0.0.1:{port}"),
            *("--languages", "en", "--tts-openai-url", url, "--tts-openai-key", "unused"),
            *("--tts-models", "tts-1", "--tts-streaming-models", "tts-1"),
            *("--tts-voices", "alloy", "echo"),
        ],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=sys.stderr,
    )
    try:
        voices = await described(port)
        assert "alloy" in voices, voices
        for case in CASES:
            print(json.dumps(await spoken(port, case)))
    finally:
        bridge.terminate()
        bridge.wait(20)


asyncio.run(main(sys.argv[1]))
