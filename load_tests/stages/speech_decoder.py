"""Time the speech decoder alone on a GPU: random weights of released shapes, graphs, no Ray.

    python -m load_tests.stages.speech_decoder --dtypes bf16 --streams 1 8 64 --frames 1 12

Prints one markdown table per dtype: milliseconds of one step (states gathered, frames decoded,
states scattered back) for a number of streams and frames per stream, the audio-seconds per second
of the best one, and the error of the samples against float32. With --served, times the runner
instead, host work included: start, memory, one frame of one stream, and that many streams decoding
chunks back to back.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from load_tests.reports import circumstances, files
from serve_app.config import SpeechDecoderConfig
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.models.checkpoint.shapes import speech_decoder_shapes
from serve_app.models.checkpoint.spec import SpeechDecoderSpec, TransformerSpec
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import resolve_device
from serve_app.models.speech_decoder.jobs import DecodeJob
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.runner import SpeechDecoderRunner
from serve_app.models.speech_decoder.steps import DecoderSteps, allow_tf32

# speech_tokenizer/config.json of the releases.
RELEASED = SpeechDecoderSpec(
    transformer=TransformerSpec(
        hidden_size=512,
        intermediate_size=1024,
        num_layers=8,
        num_heads=16,
        num_kv_heads=16,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    ),
    sliding_window=72,
    latent_dim=1024,
    codebook_dim=512,
    codebook_size=2048,
    vq_dim=256,
    num_code_groups=16,
    decoder_dim=1536,
    upsample_rates=(8, 5, 4, 3),
    upsampling_ratios=(2, 2),
    sample_rate_hz=24000,
    samples_per_frame=1920,
)
# Of the comparison with float32; the state's rounding is in it from the second chunk on.
_ERROR_FRAMES = 48
# dtype of weights and activations, and whether float32 products may use TensorFloat-32.
DTYPES = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, True),
}


def random_tensors(spec: SpeechDecoderSpec, device: torch.device) -> dict[str, Tensor]:
    """Draw every tensor of a speech decoder; the output is neither silent nor clipped."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=generator, device=device)
        if name.endswith("cluster_usage"):
            return noise.abs() + 0.5
        if name.endswith((".scale", ".gamma")):
            return noise.abs().clamp(0.1, 0.5)
        if len(shape) == 1:
            return noise * 0.1 + float("norm" in name and name.endswith("weight"))
        fan_in = shape[0] if name.endswith("0.conv.weight") and len(shape) == 3 else shape[1]
        return noise * 0.5 / (fan_in * shape[-1] if len(shape) == 3 else fan_in) ** 0.5

    prefix = "decoder."
    return {
        name.removeprefix(prefix): draw(name, shape)
        for name, shape in speech_decoder_shapes(spec).items()
    }


def time_steps(
    model: SpeechDecoderModel, streams: list[int], frames: list[int], with_tf32: bool, repeats: int
) -> dict[tuple[int, int], float]:
    """Return seconds per step for each (streams, frames)."""
    device = model.tables.device
    arena = model.new_state(max(streams) + 1)
    allow_tf32(with_tf32)

    def step(slots: Tensor, codes: Tensor) -> Tensor:
        rows = arena.gather(slots)
        samples = model.decode(codes, rows)
        arena.scatter(slots, rows)
        return samples

    seconds = {}
    with torch.cuda.stream(torch.cuda.Stream()):
        for num_frames in frames:

            def inputs(rows: int, num_frames: int = num_frames) -> tuple[Tensor, Tensor]:
                codes = torch.randint(2048, (rows, 16, num_frames), device=device)
                return torch.arange(rows, device=device), codes

            for rows in streams:
                graphs = BatchGraphs(inputs, step, [rows])
                graphs.capture_all()
                given = inputs(rows)
                for _ in range(3):
                    graphs(*given)
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(repeats):
                    graphs(*given)
                end.record()
                end.synchronize()
                seconds[rows, num_frames] = start.elapsed_time(end) / repeats / 1000
                graphs.close()
    return seconds


def samples(
    tensors: dict[str, Tensor], dtype: torch.dtype, with_tf32: bool, device: torch.device
) -> Tensor:
    """Float32 samples of `_ERROR_FRAMES` random frames, decoded in chunks as they are served."""
    model = SpeechDecoderModel(RELEASED).load(tensors, dtype, device)
    generator = torch.Generator().manual_seed(0)
    shape = (1, RELEASED.num_code_groups, _ERROR_FRAMES)
    codes = torch.randint(RELEASED.codebook_size, shape, generator=generator).to(device)
    state = model.new_state(1)
    allow_tf32(with_tf32)
    return torch.cat([model.decode(chunk, state) for chunk in codes.split(12, 2)], 1)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of what is expected."""
    return ((got - expected).square().mean() / expected.square().mean()).sqrt().item()


class DecoderTimes:
    """Device times of decoder steps, in graphs of their own, with nothing running beside them.

    More than `widest` streams are decoded in several steps.
    """

    def __init__(
        self, checkpoint: Checkpoint, batches: list[int], widest: int, chunks: tuple[int, ...]
    ) -> None:
        place = resolve_device("cuda", "auto")
        model = SpeechDecoderModel(checkpoint.spec.speech_decoder)
        model.load(checkpoint.speech_tokenizer_tensors("decoder."), place.dtype, place.device)
        self._widest = widest
        widths = sorted({min(batch, widest) for batch in batches})
        self._seconds = time_steps(model, widths, sorted(set(chunks)), True, repeats=20)

    def ms(self, streams: int, frames: int) -> float:
        """Decode `frames` frames of each stream."""
        num_steps = -(-streams // self._widest)
        return 1000 * num_steps * self._seconds[min(streams, self._widest), frames]


def table(seconds: dict[tuple[int, int], float], streams: list[int], frames: list[int]) -> str:
    """Format milliseconds per step as markdown."""
    lines = ["| streams | " + " | ".join(f"{t} frames" for t in frames) + " |"]
    lines.append("| ---: |" + " ---: |" * len(frames))
    for rows in streams:
        cells = " | ".join(f"{seconds[rows, t] * 1000:.2f}" for t in frames)
        lines.append(f"| {rows} | {cells} |")
    return "\n".join(lines)


def as_json(seconds: dict[tuple[int, int], float]) -> list[dict[str, Any]]:
    return [
        {"streams": rows, "frames": frames, "ms": 1000 * value}
        for (rows, frames), value in seconds.items()
    ]


def profile(model: SpeechDecoderModel, rows: int, num_frames: int) -> str:
    """Return the kernels of one eager step, the most expensive first."""
    state = model.new_state(rows)
    codes = torch.randint(2048, (rows, 16, num_frames), device=model.tables.device)
    for _ in range(3):
        model.decode(codes, state)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        model.decode(codes, state)
        torch.cuda.synchronize()
    return profiler.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=90
    )


def served(model: SpeechDecoderModel, num_streams: int) -> str:
    """Return what a replica with the default configuration does for `num_streams` busy streams."""
    config = SpeechDecoderConfig(max_streams=num_streams)
    begin, before = time.monotonic(), torch.cuda.memory_reserved()
    steps = DecoderSteps(
        model,
        max_streams=config.max_streams,
        chunk_frames=config.chunk_frames,
        batch_sizes=config.batch_sizes,
    )
    runner = SpeechDecoderRunner(steps)
    start_s = time.monotonic() - begin
    memory = (torch.cuda.memory_reserved() - before) / 2**30
    slots = [runner.acquire() for _ in range(num_streams)]
    frame = np.zeros((1, RELEASED.num_code_groups), np.int64)
    chunk = frame.repeat(config.chunk_frames[-1], 0)
    rounds = 10

    def decoded(slot: int, codes: np.ndarray) -> "asyncio.Future[np.ndarray]":
        job = DecodeJob(codes, asyncio.get_running_loop().create_future())
        runner.enqueue(slot, job)
        return job.future

    async def measure() -> tuple[list[float], float]:
        latencies = []
        for _ in range(50):
            begin = time.monotonic()
            await decoded(slots[0], frame)
            latencies.append(time.monotonic() - begin)
        begin = time.monotonic()
        await asyncio.gather(*(decoded(slot, chunk) for _ in range(rounds) for slot in slots))
        return latencies, time.monotonic() - begin

    latencies, elapsed = asyncio.run(measure())
    audio = rounds * num_streams * len(chunk) * RELEASED.samples_per_frame / RELEASED.sample_rate_hz
    runner.close()
    return (
        f"start {start_s:.1f} s, memory {memory:.2f} GiB besides the weights;"
        f" one frame {sorted(latencies)[25] * 1000:.2f} ms (median);"
        f" {num_streams} streams x {len(chunk)} frames:"
        f" {audio / elapsed:.0f} audio-seconds per second"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m load_tests.stages.speech_decoder")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 3, 8, 12, 16])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--profile", type=int, nargs=2, metavar=("STREAMS", "FRAMES"))
    parser.add_argument("--served", type=int, metavar="STREAMS")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    args = parser.parse_args()
    facts, tables = circumstances.environment(args.commit), {}
    device = torch.device("cuda")
    tensors = random_tensors(RELEASED, device)
    exact = samples(tensors, torch.float32, False, device)
    print(f"GPU {torch.cuda.get_device_name()}, torch {torch.__version__}; ms per step\n")
    for name in args.dtypes:
        dtype, with_tf32 = DTYPES[name]
        model = SpeechDecoderModel(RELEASED).load(tensors, dtype, device)
        if args.profile:
            print(profile(model, *args.profile))
            continue
        if args.served:
            print(f"{name}: {served(model, args.served)}")
            del model
            torch.cuda.empty_cache()
            continue
        torch.cuda.reset_peak_memory_stats()
        begin = time.monotonic()
        seconds = time_steps(model, args.streams, args.frames, with_tf32, args.repeats)
        tables[name] = as_json(seconds)
        error = relative_error(samples(tensors, dtype, with_tf32, device), exact)
        best = max(rows * t * 0.08 / s for (rows, t), s in seconds.items())
        print(f"### {name}\n\n{table(seconds, args.streams, args.frames)}\n")
        peak = torch.cuda.max_memory_reserved() / 2**30
        print(
            f"Best: {best:.0f} audio-seconds per second."
            f" Error {error:.1e} of the samples' root mean square. Memory {peak:.1f} GiB, took"
            f" {time.monotonic() - begin:.0f} s.\n"
        )
        del model
        torch.cuda.empty_cache()
    if args.out:
        files.write_json(args.out, {"facts": facts, "dtypes": tables})


if __name__ == "__main__":
    main()
