"""LiveKit Agents' TTS of OpenAI: `python of_livekit.py BASE_URL`; a JSON line a case."""

import asyncio
import json
import sys
import time

import numpy as np
from livekit.plugins import openai

TEXT = "Good morning. This is a sentence for an agent to say."
# The defaults of the plugin first: mp3 in server-sent events.
CASES = [{}, *({"response_format": form} for form in ("opus", "aac", "flac", "wav", "pcm"))]
# Models whose answers it takes as bytes.
CASES += [{"model": "tts-1"}, {"model": "tts-1-hd", "response_format": "pcm", "speed": 2.0}]


async def main(url: str) -> None:
    for options in CASES:
        tts = openai.TTS(base_url=url, api_key="unused", **options)
        tts.prewarm()
        asked_s = time.perf_counter()
        first_s, frames = None, []
        async with tts.synthesize(TEXT) as stream:
            async for event in stream:
                first_s = first_s or time.perf_counter() - asked_s
                frames.append(event.frame)
        samples = np.concatenate([np.frombuffer(frame.data, np.int16) for frame in frames])
        print(
            json.dumps(
                {
                    "case": " ".join(map(str, options.values())) or "defaults",
                    "audio_s": len(samples) / frames[0].sample_rate,
                    "loudest": int(np.abs(samples.astype(int)).max()),
                    "first_audio_s": first_s,
                    "speed": options.get("speed", 1.0),
                }
            )
        )
        await tts.aclose()


asyncio.run(main(sys.argv[1]))
