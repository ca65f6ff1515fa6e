"""Pipecat's TTS of OpenAI, and of Together over a WebSocket: `python of_pipecat.py BASE_URL`.

A JSON line a case.
"""

import asyncio
import json
import sys
import time

import numpy as np
from loguru import logger
from pipecat.frames.frames import ErrorFrame, Frame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.worker import PipelineParams
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.services.together.tts import TogetherTTSService
from pipecat.tests.utils import run_test

TEXT = "Good morning. This is a sentence for an agent to say."
CASES = [{}, {"voice": "marin"}, {"instructions": "Whisper."}, {"speed": 2.0}]


class FirstAudio(BaseObserver):
    """Notes when the first audio was handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_s = time.perf_counter()
        self.first_s: float | None = None

    async def on_push_frame(self, data: FramePushed) -> None:
        if isinstance(data.frame, TTSSpeakFrame) and self.first_s is None:
            self.asked_s = time.perf_counter()
        if isinstance(data.frame, TTSAudioRawFrame) and self.first_s is None:
            self.first_s = time.perf_counter() - self.asked_s


def of_openai(url: str, options: dict) -> OpenAITTSService:
    settings = OpenAITTSService.Settings(**options)
    return OpenAITTSService(api_key="unused", base_url=url, sample_rate=24000, settings=settings)


def of_together(url: str) -> TogetherTTSService:
    address = f"ws{url.removeprefix('http')}/audio/speech/websocket"
    settings = TogetherTTSService.Settings(model="tts-1", voice="marin")
    return TogetherTTSService(api_key="unused", url=address, settings=settings)


async def speak(
    service: OpenAITTSService | TogetherTTSService,
) -> tuple[list[Frame], float | None]:
    observer = FirstAudio()
    down, up = await run_test(
        service,
        frames_to_send=[TTSSpeakFrame(TEXT)],
        observers=[observer],
        pipeline_params=PipelineParams(audio_out_sample_rate=24000),
        start_timeout=20.0,
    )
    return [*down, *up], observer.first_s


async def main(url: str) -> None:
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    cases = [(of_openai(url, options), options) for options in CASES]
    cases.append((of_together(url), {"service": "Together's"}))
    for service, options in cases:
        frames, first_s = await speak(service)
        errors = [frame.error for frame in frames if isinstance(frame, ErrorFrame)]
        if errors:
            raise SystemExit(f"pipecat: {errors}")
        audio = [frame for frame in frames if isinstance(frame, TTSAudioRawFrame)]
        samples = np.frombuffer(b"".join(frame.audio for frame in audio), np.int16)
        print(
            json.dumps(
                {
                    "case": " ".join(map(str, options.values())) or "defaults",
                    "audio_s": len(samples) / audio[0].sample_rate,
                    "loudest": int(np.abs(samples.astype(int)).max()),
                    "first_audio_s": first_s,
                    "speed": options.get("speed", 1.0),
                    # Of text in pieces each sentence is made by itself.
                    "requests": 2 if "service" in options else 1,
                }
            )
        )


asyncio.run(main(sys.argv[1]))
