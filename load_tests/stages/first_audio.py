"""Where the first audio of one stream spends its time, in one process, without Serve.

    python load_tests/stages/first_audio.py --size 1.7b

Medians in ms of the way from the call to the first samples:
`queued` until the engine thread has taken the request, `launched` until the host has enqueued the
prefill step, `frame` until the codes are on the host, `woken` until the event loop has them,
`decoded` until the samples are there.
"""

import argparse
import asyncio
import itertools
import os
import statistics
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import torch

from load_tests.stages.frame import request
from serve_app.config import CodePredictorConfig, SpeechDecoderConfig, TalkerConfig
from serve_app.models.checkpoint import open_checkpoint
from serve_app.models.frame_channel import InProcessFrames
from serve_app.models.random_checkpoint import write_checkpoint
from serve_app.models.speech_decoder import StreamingSpeechDecoder
from serve_app.models.talker.engine import VllmTalker

NAMES = ("queued", "launched", "frame", "woken", "decoded")


class Probe:
    """Notes when a function is entered or left for the first time after `start`."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def start(self) -> None:
        self.times = {"start": time.perf_counter()}

    def note(self, name: str) -> None:
        self.times.setdefault(name, time.perf_counter())

    def after(self, owner: object, attribute: str, name: str) -> None:
        inner = getattr(owner, attribute)

        def noted(*args, **kwargs):
            result = inner(*args, **kwargs)
            self.note(name)
            return result

        setattr(owner, attribute, noted)


async def once(talker: VllmTalker, decoder: StreamingSpeechDecoder, probe: Probe, seed: int):
    probe.start()

    async def frames():
        async with aclosing(talker.frames(request(seed, 4))) as stream:
            async for item in stream:
                probe.note("woken")
                yield item

    async with aclosing(decoder.pcm(frames())) as chunks:
        async for _ in chunks:
            probe.note("decoded")
    moments = [probe.times[name] for name in ("start", *NAMES)]
    return [1000 * (b - a) for a, b in itertools.pairwise(moments)]


async def measure(talker: VllmTalker, decoder: StreamingSpeechDecoder, probe: Probe) -> None:
    runs = []
    for seed in range(25):
        runs.append(await once(talker, decoder, probe, seed))
        await asyncio.sleep(0.03)
    medians = [statistics.median(column) for column in zip(*runs[5:], strict=True)]
    print("| " + " | ".join((*NAMES, "sum")) + " |\n|" + " ---: |" * (len(NAMES) + 1))
    print("| " + " | ".join(f"{ms:.2f}" for ms in (*medians, sum(medians))) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="1.7b")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    folder = args.checkpoint or Path(tempfile.mkdtemp()) / args.size
    if not folder.exists():
        write_checkpoint(
            folder, size=args.size, variant="custom_voice", eos="unreachable", device=args.device
        )
    checkpoint = open_checkpoint(folder)
    predictor = InProcessFrames.load(
        checkpoint, CodePredictorConfig(batch_sizes=(1, 2, 4, 8)), args.device
    )
    settings = TalkerConfig(max_num_seqs=8, max_model_len=1024)
    talker = VllmTalker.load(checkpoint, settings, args.device, predictor)
    decoder = StreamingSpeechDecoder.load(
        checkpoint, SpeechDecoderConfig(max_streams=8), args.device
    )
    probe = Probe()
    probe.after(talker, "_add", "queued")
    executor = talker.core.model_executor
    probe.after(executor, "sample_tokens", "launched")
    probe.after(talker, "_dispatch", "frame")
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}, {args.size}")
    asyncio.run(measure(talker, decoder, probe))
    os._exit(0)


if __name__ == "__main__":
    main()
