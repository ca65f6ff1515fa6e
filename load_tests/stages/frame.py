"""One frame of the talker with the code predictor in its process: where the time of a step goes. No
Ray, no HTTP.

    python load_tests/stages/frame.py --size 1.7b --batches 1 16 64

Random full-size weights, EOS unreachable, so that every stream makes the asked number of frames.
Columns, in ms per step: `talker` from the input gather to the logits, `frame` sampling, code
predictor and storing (CUDA events), `host`
what the step's wall time exceeds them by (the device idles), `step` the wall time.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import torch

from serve_app.config import CodePredictorConfig, SpeechDecoderConfig, TalkerConfig
from serve_app.models.checkpoint import open_checkpoint
from serve_app.models.frame_channel import InProcessFrames
from serve_app.models.random_checkpoint import write_checkpoint
from serve_app.models.speech_decoder import StreamingSpeechDecoder
from serve_app.models.talker.engine import VllmTalker
from serve_app.pipeline import synthesize
from serve_app.types import SpeechRequest

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."


def request(index: int, frames: int) -> SpeechRequest:
    return SpeechRequest(
        f"bench-{index}", "bench", TEXT, "ryan", "english", seed=index, streaming_text=True,
        max_new_tokens=frames,
    )  # fmt: skip


async def drain(stream, first: list[float] | None = None) -> None:
    start = time.perf_counter()
    async with aclosing(stream):
        async for _ in stream:
            if first is not None:
                first.append(time.perf_counter() - start)
                first = None


async def decode_steps(talker: VllmTalker, state, batch: int, frames: int) -> dict[str, float]:
    """Median times of steps in which `batch` streams decode together."""
    state.marks = None
    tasks = [asyncio.create_task(drain(talker.frames(request(i, frames)))) for i in range(batch)]
    while talker.stats()["running"] < batch or talker.stats()["frames"] < batch:
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.1)
    state.marks, steps, start = [], talker.stats()["steps"], time.perf_counter()
    await asyncio.sleep(1.0 if batch < 64 else 1.5)
    marks, wall = state.marks, time.perf_counter() - start
    done = talker.stats()["steps"] - steps
    state.marks = None
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    while talker.stats()["running"]:
        await asyncio.sleep(0.01)
    torch.cuda.synchronize()
    full = [marks[i : i + 3] for i in range(0, len(marks) - 3, 3)]
    spans = [[a.elapsed_time(b) for a, b in pairwise(m)] for m in full]
    talker_ms, frame_ms = (statistics.median(column) for column in zip(*spans, strict=True))
    step_ms = 1000 * wall / done
    return {
        "batch": batch,
        "talker": talker_ms,
        "frame": frame_ms,
        "host": step_ms - talker_ms - frame_ms,
        "step": step_ms,
    }


async def audio(
    talker: VllmTalker, decoder: StreamingSpeechDecoder, streams: int, frames: int
) -> dict[str, float]:
    """Closed loop of `streams` whole requests, decoder included: first audio and audio seconds per
    second.
    """
    chunks = SpeechDecoderConfig().chunk_frames
    first: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(
        *[
            drain(synthesize(talker, decoder, request(i, frames), chunks), first)
            for i in range(streams)
        ]
    )
    wall = time.perf_counter() - start
    return {
        "streams": streams,
        "first_ms_p50": 1000 * statistics.median(first),
        "first_ms_max": 1000 * max(first),
        "audio_s_per_s": streams * frames * 0.08 / wall,
    }


def table(rows: list[dict[str, float]]) -> str:
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    lines += [
        "| "
        + " | ".join(f"{row[k]:.2f}" if isinstance(row[k], float) else str(row[k]) for k in head)
        + " |"
        for row in rows
    ]
    return "\n".join(lines)


async def measure(
    args: argparse.Namespace, talker: VllmTalker, decoder: StreamingSpeechDecoder, state
) -> None:
    for streams in (1, max(args.batches)):
        await asyncio.gather(*[drain(talker.frames(request(i, 20))) for i in range(streams)])
    rows = [await decode_steps(talker, state, batch, args.frames) for batch in args.batches]
    print(table(rows), flush=True)
    await audio(talker, decoder, 1, 30)
    singles = [await audio(talker, decoder, 1, 30) for _ in range(10)]
    print(
        "first audio in process, one stream: p50"
        f" {statistics.median(s['first_ms_p50'] for s in singles):.1f} ms"
    )
    loops = [await audio(talker, decoder, streams, 100) for streams in args.batches]
    print(table(loops), flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps({"steps": rows, "loops": loops}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="1.7b", choices=["0.6b", "1.7b"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--eager", action="store_true", help="talker without CUDA graphs")
    parser.add_argument("--checkpoint", type=Path, help="keep the checkpoint here and reuse it")
    parser.add_argument("--out", help="JSON file for the numbers")
    args = parser.parse_args()
    folder = args.checkpoint or Path(tempfile.mkdtemp()) / args.size
    began = time.perf_counter()
    if not folder.exists():
        write_checkpoint(
            folder, size=args.size, variant="custom_voice", eos="unreachable", device="cuda"
        )
    written = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    most = max(args.batches)
    predictor = InProcessFrames.load(
        checkpoint,
        CodePredictorConfig(
            batch_sizes=tuple(b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b <= most)
        ),
        "cuda",
    )
    loaded = time.perf_counter()
    settings = TalkerConfig(max_num_seqs=most, max_model_len=2048, cuda_graphs=not args.eager)
    talker = VllmTalker.load(checkpoint, settings, "cuda", predictor)
    ready = time.perf_counter()
    decoder = StreamingSpeechDecoder.load(checkpoint, SpeechDecoderConfig(max_streams=most), "cuda")
    end = time.perf_counter()
    import vllm

    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, vllm {vllm.__version__},"
        f" {args.size}; write {written - began:.1f} s, predictor {loaded - written:.1f} s,"
        f" talker {ready - loaded:.1f} s,"
        f" decoder {end - ready:.1f} s; {torch.cuda.mem_get_info()[0] / 2**30:.1f} GiB free",
        flush=True,
    )
    asyncio.run(measure(args, talker, decoder, talker.model_state))
    # vLLM processes have been seen to hang at exit.
    os._exit(0)


if __name__ == "__main__":
    main()
