"""Pipecat's OpenAI TTS in a pipeline: `python of_pipecat.py BASE_URL`; a JSON line a case."""

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


async def speak(url: str, options: dict) -> tuple[list[Frame], float | None]:
    settings = OpenAITTSService.Settings(**options)
    service = OpenAITTSService(api_key="unused", base_url=url, sample_rate=24000, settings=settings)
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
    for options in CASES:
        frames, first_s = await speak(url, options)
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
                }
            )
        )


asyncio.run(main(sys.argv[1]))
