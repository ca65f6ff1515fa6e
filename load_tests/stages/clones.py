"""What a cloned voice costs, in one process, without Serve.

    python -m load_tests.stages.clones --size 0.6b

First audio of one stream with a voice's vector alone and with recordings of several lengths in
context, in ms, median of 20; the time to encode such a recording, median of 5; and what the encoder
takes of the GPU's memory beside the stages, without a context of its own.
"""

import argparse
import asyncio
import dataclasses
import os
import statistics
import time

import numpy as np

from load_tests.reports import files
from load_tests.stages.in_process import (
    Stages,
    add_options,
    checkpoint_of,
    drain,
    request,
    settings_for,
    used_mib,
)
from serve_app.models.voice_encoder.stage import ClipEncoder
from serve_app.types import ClonedVoice, EncodedClip

SECONDS = (3, 10, 30)
SAID = "What is said in the recording, more or less as long as it is."


def voices(clips: dict[int, EncodedClip]) -> dict[str, ClonedVoice]:
    vector = next(iter(clips.values())).speaker_vector
    made = {"vector alone": ClonedVoice(vector)}
    for seconds, clip in clips.items():
        made[f"{seconds} s in context"] = ClonedVoice(clip.speaker_vector, clip.codes, SAID)
    return made


async def first_audio_ms(stages: Stages, voice: ClonedVoice) -> float:
    delays: list[float] = []
    for seed in range(25):
        asked = dataclasses.replace(request(seed, 4), voice=voice)
        await drain(stages.speech.speak(asked), delays)
        await asyncio.sleep(0.03)
    return 1000 * statistics.median(delays[5:])


def encode(encoder: ClipEncoder, seconds: int) -> tuple[EncodedClip, float]:
    """A recording encoded, and how many ms it takes."""
    noise = np.random.default_rng(seconds).standard_normal(24000 * seconds)
    samples = (0.1 * noise).astype(np.float32)
    clip, took = encoder.encode(samples), []
    for _ in range(5):
        began_s = time.perf_counter()
        encoder.encode(samples)
        took.append(1000 * (time.perf_counter() - began_s))
    return clip, statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser)
    args = parser.parse_args()
    checkpoint = checkpoint_of(args, "base")
    stages = Stages.load(checkpoint, settings_for(8, 2048), args.device)
    facts = stages.facts(args.commit)
    began_s, before_mib = time.perf_counter(), used_mib(args.device)
    encoder = ClipEncoder(checkpoint, args.device)
    facts["encoder_load_s"] = time.perf_counter() - began_s
    print(facts)
    encoded = {seconds: encode(encoder, seconds) for seconds in SECONDS}
    encoder_mib = used_mib(args.device) - before_mib
    print(f"encoder: {encoder_mib} MiB of the GPU", flush=True)
    encode_ms = {seconds: took for seconds, (_, took) in encoded.items()}
    for seconds, took in encode_ms.items():
        print(f"encode {seconds} s: {took:.1f} ms", flush=True)
    first_ms = {}
    for name, voice in voices({seconds: clip for seconds, (clip, _) in encoded.items()}).items():
        first_ms[name] = asyncio.run(first_audio_ms(stages, voice))
        print(f"first audio, {name}: {first_ms[name]:.2f} ms", flush=True)
    if args.out:
        measured = {
            "encode_ms": encode_ms,
            "first_audio_ms": first_ms,
            "encoder_mib": encoder_mib,
        }
        files.write_json(args.out, {"facts": facts, "size": args.size, **measured})
    os._exit(0)


if __name__ == "__main__":
    main()
