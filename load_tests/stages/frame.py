"""One frame of all streams: what each stage takes, alone and together, beside its floor.

    python -m load_tests.stages.frame --size 1.7b --batches 1 8 16 32 64 128 256

No Ray, no HTTP; random full-size weights, EOS unreachable. README.md defines the columns.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch

from load_tests.reports import files
from load_tests.reports.frame_table import FrameRow, frame_table
from load_tests.stages import floors
from load_tests.stages.floors import Device, Work
from load_tests.stages.in_process import (
    Stages,
    add_options,
    checkpoint_of,
    closed_loop,
    drain,
    request,
    settings_for,
)
from load_tests.stages.speech_decoder import DecoderTimes
from serve_app.models.talker.prompt import build_prompt

MAX_MODEL_LEN: Final = 2048
# Of the window in which steps are counted; a chunk of 12 frames is one in 12 steps.
_WINDOW_S: Final = 1.5
_WINDOW_WITH_DECODER_S: Final = 2.5
_SETTLE_S: Final = 0.2
# Of the closed loops of whole requests, as long as those of `load_tests.bench` over HTTP.
_REQUEST_FRAMES: Final = 60


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted while `streams` streams ran: `context` is the mean of their positions."""

    streams: int
    wall_s: float
    steps: int
    frames: int
    decoded: int
    context: float

    @property
    def step_ms(self) -> float:
        return 1000 * self.wall_s / self.steps


@asynccontextmanager
async def running(
    stages: Stages,
    streams: int,
    make: Callable[[int], AsyncGenerator[Any, None]],
    groups: int = 1,
) -> AsyncGenerator[None, None]:
    """Keep `streams` streams running inside, all of them past their prefill; then abort them.

    They begin in `groups` groups, one step after the other.
    """
    talker = stages.talker
    begun = talker.stats()["frames"]
    tasks: list[asyncio.Task[None]] = []

    async def until(is_reached: Callable[[], bool]) -> None:
        while not is_reached():
            await asyncio.sleep(0.0005)
            for task in tasks:
                if task.done():
                    task.result()

    try:
        for group in range(min(groups, streams)):
            steps = talker.stats()["steps"]
            tasks += [
                asyncio.create_task(drain(make(index))) for index in range(group, streams, groups)
            ]
            await until(lambda steps=steps: talker.stats()["steps"] > steps)
        await until(lambda: talker.stats()["running"] == streams)
        await until(lambda: talker.stats()["frames"] - begun >= streams)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while talker.stats()["running"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(_SETTLE_S)
        torch.cuda.synchronize()


async def observe(stages: Stages, streams: int, seconds: float, frames_before: float) -> Window:
    """Count for `seconds`; `frames_before` is the talker's count when the streams began."""
    talker, decoder = stages.talker, stages.speech.decoder
    before, decoded, start = dict(talker.stats()), decoder.stats()["frames"], time.perf_counter()
    await asyncio.sleep(seconds)
    wall_s, after = time.perf_counter() - start, dict(talker.stats())
    if before["running"] != streams or after["running"] != streams:
        raise RuntimeError(f"{after['running']:.0f} of {streams} streams were left in the window")
    made = (before["frames"] + after["frames"]) / 2 - frames_before
    prompt = build_prompt(request(0, 1), stages.spec, talker.tokenizer, MAX_MODEL_LEN)
    return Window(
        streams,
        wall_s,
        int(after["steps"] - before["steps"]),
        int(after["frames"] - before["frames"]),
        int(decoder.stats()["frames"] - decoded),
        len(prompt.rows) + made / streams,
    )


async def talker_alone(stages: Stages, streams: int, frames: int) -> tuple[Window, float, float]:
    """Steps without a decoder: the window, and the medians of talker and frame in ms."""
    talker, core = stages.talker, stages.talker.inspect.core
    assert core is not None
    state = core.runner.model_state
    begun = talker.stats()["frames"]
    marks: list[tuple[str, torch.cuda.Event]] = []
    state.marks = marks
    try:
        async with running(stages, streams, lambda i: talker.frames(request(i, frames))):
            await asyncio.sleep(_SETTLE_S)
            before = len(marks)
            window = await observe(stages, streams, _WINDOW_S, begun)
            after = len(marks)
    finally:
        state.marks = None
    # A step may be under way at either end.
    spans = [
        [a.elapsed_time(b) for (_, a), (_, b) in pairwise(marks[first : first + 3])]
        for first in range(before, after - 3)
        if marks[first][0] == "inputs"
    ]
    if abs(len(spans) - window.steps) > 3:
        raise RuntimeError(f"{len(spans)} steps by their marks, {window.steps} counted")
    talker_ms, frame_ms = (statistics.median(column) for column in zip(*spans, strict=True))
    return window, talker_ms, frame_ms


async def with_decoder(stages: Stages, streams: int, frames: int) -> Window:
    """Steps while the decoder makes audio of every frame, in the same process.

    As many groups of streams as a chunk has frames begin a step apart, so that chunks fall due
    evenly, as those of listeners who came at different times do.
    """
    talker, steady = stages.talker, stages.steady_frames
    begun = talker.stats()["frames"]

    def speak(index: int) -> AsyncGenerator[Any, None]:
        return stages.speech.speak(request(index, frames))

    async with running(stages, streams, speak, groups=steady):
        # Until the short first chunks of all streams are through.
        first = talker.stats()["steps"]
        while talker.stats()["steps"] - first < sum(stages.config.speech_decoder.chunk_frames):
            await asyncio.sleep(0.005)
        await asyncio.sleep(_SETTLE_S)
        return await observe(stages, streams, _WINDOW_WITH_DECODER_S, begun)


async def measure_row(
    stages: Stages, times: DecoderTimes, streams: int, frames: int, device: Device
) -> FrameRow:
    spec, steady = stages.spec, stages.steady_frames
    alone, talker_ms, predictor_ms = await talker_alone(stages, streams, frames)
    beside = await with_decoder(stages, streams, frames)

    def talker(window: Window) -> Work:
        return floors.talker_step(spec.talker, streams, window.context)

    predictor = floors.predictor_frame(spec.code_predictor, streams)
    chunk = floors.decoder_chunk(spec.speech_decoder, streams, steady) * (1 / steady)
    first = floors.decoder_chunk(spec.speech_decoder, streams, 1)
    # One after the other; the decoder may overlap with both.
    step_floor_ms = talker(alone).ms(device) + predictor.ms(device)
    in_turn_ms = talker(beside).ms(device) + predictor.ms(device)
    everything = talker(beside) + predictor + chunk
    return FrameRow(
        batch=streams,
        context=alone.context,
        context_whole=beside.context,
        talker_ms=talker_ms,
        talker_floor_ms=talker(alone).ms(device),
        predictor_ms=predictor_ms,
        predictor_floor_ms=predictor.ms(device),
        decoder_ms=times.ms(streams, steady) / steady,
        decoder_floor_ms=chunk.ms(device),
        first_chunk_ms=times.ms(streams, 1),
        first_chunk_floor_ms=first.ms(device),
        host_ms=alone.step_ms - talker_ms - predictor_ms,
        step_ms=alone.step_ms,
        step_floor_ms=step_floor_ms,
        whole_ms=beside.step_ms,
        whole_floor_ms=max(in_turn_ms, everything.ms(device)),
        decoded_share=beside.decoded / beside.frames,
        compute_bound=[
            name
            for name, work in (
                ("talker", talker(alone)),
                ("predictor", predictor),
                ("decoder", chunk),
                ("first_chunk", first),
            )
            if work.is_compute_bound(device)
        ],
    )


async def measure(args: argparse.Namespace, stages: Stages, times: DecoderTimes) -> dict[str, Any]:
    device = Device(args.bandwidth * 1e12, args.tflops * 1e12)
    for streams in (1, max(args.batches)):
        await closed_loop(stages, streams, 20, _SETTLE_S)
    rows = []
    for batch in args.batches:
        rows.append(await measure_row(stages, times, batch, args.frames, device))
        print(f"batch {batch}: {rows[-1].whole_ms:.2f} ms", flush=True)
    print("\n" + frame_table(rows), flush=True)
    single = await closed_loop(stages, 1, 30, _WINDOW_S)
    first_ms = single.as_json()["first_ms_p50"]
    print(f"\nfirst audio in process, one stream: p50 {first_ms:.1f} ms")
    loops = []
    for streams in args.batches:
        loop = await closed_loop(stages, streams, _REQUEST_FRAMES, _WINDOW_WITH_DECODER_S)
        loops.append(loop.as_json())
    for loop in loops:
        print(", ".join(f"{name} {value:.1f}" for name, value in loop.items()), flush=True)
    return {"rows": [row.as_json() for row in rows], "first_audio_ms": first_ms, "loops": loops}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--frames", type=int, default=1900, help="of one stream, at most")
    parser.add_argument("--eager", action="store_true", help="talker without CUDA graphs")
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s, for the floors")
    parser.add_argument("--tflops", type=float, default=790, help="bf16, for the floors")
    args = parser.parse_args()
    checkpoint = checkpoint_of(args)
    config = settings_for(max(args.batches), MAX_MODEL_LEN, cuda_graphs=not args.eager)
    decoder = config.speech_decoder
    chunks = (1, decoder.chunk_frames[-1])
    times = DecoderTimes(checkpoint, args.batches, max(decoder.batch_sizes), chunks)
    torch.cuda.empty_cache()
    stages = Stages.load(checkpoint, config, args.device)
    facts = stages.facts(args.commit)
    print(facts, flush=True)
    result = asyncio.run(measure(args, stages, times))
    if args.out:
        files.write_json(args.out, {"facts": facts, "size": args.size, **result})
    # vLLM processes have been seen to hang at exit.
    os._exit(0)


if __name__ == "__main__":
    main()
