"""What a start of the speech decoder costs, and what it buys: cuDNN's algorithms, tried or not.

    python -m load_tests.stages.decoder_start --variants off 2 3 10 10:64

starts the decoder of a profile once per variant, each in a process of its own, with random weights
of released shapes and on an otherwise idle GPU. A variant is `off` (what cuDNN expects to be fast),
`off-b` (its slower, better guess) or the number of algorithms that are tried for each convolution,
with `:FRAMES` only for steps of at least so many frames, those of all streams together. Prints a
table with the seconds of the start and the milliseconds of each step, states and host included. A
variant that is named twice is in the table as it was last: the first one fills Triton's cache.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from load_tests.reports import circumstances, files
from load_tests.reports.report import table_head, table_line
from load_tests.stages.speech_decoder import RELEASED, random_tensors
from serve_app.config import PROFILES, SpeechDecoderConfig
from serve_app.models.speech_decoder.algorithms import Trials
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.steps import DecoderSteps, Piece
from serve_app.models.start_times import start_times

_TRIES: Final = 3
# Read by PyTorch when it is loaded.
_BETTER_GUESS: Final = {"TORCH_CUDNN_USE_HEURISTIC_MODE_B": "1"}


def trials_of(variant: str) -> Trials:
    """What `--variants` names.

    Raises:
        ValueError: neither `off`, `off-b` nor NUMBER or NUMBER:FRAMES.
    """
    if variant in ("off", "off-b"):
        # Captured before the start is over all the same, as the others are.
        return Trials(1, from_frames=sys.maxsize)
    algorithms, _, frames = variant.partition(":")
    return Trials(int(algorithms), int(frames or 1))


def start(variant: str, profile: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Start a decoder and time its steps; seconds, and milliseconds by "STREAMS x FRAMES"."""
    settings = PROFILES[profile].get("speech_decoder", {})  # pyright: ignore[reportArgumentType]
    config = SpeechDecoderConfig(**settings)
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    model = SpeechDecoderModel(RELEASED).load(random_tensors(RELEASED, device), dtype, device)
    start_times.begin()
    steps = DecoderSteps(
        model,
        max_streams=config.max_streams,
        chunk_frames=config.chunk_frames,
        batch_sizes=config.batch_sizes,
        trials=trials_of(variant),
    )
    start_times.lap("decoder graphs")
    try:
        sizes = set(config.chunk_frames)
        rows_of = {
            size: [n for n in config.batch_sizes if n <= steps.most_rows(size)] for size in sizes
        }
        ms = {
            f"{rows} x {size}": _step_ms(steps, rows, size, repeats)
            for size in sorted(sizes)
            for rows in rows_of[size]
        }
        memory = torch.cuda.max_memory_reserved() if is_cuda else 0
        return {"start_s": start_times.parts, "memory_mib": memory >> 20, "ms": ms}
    finally:
        steps.close()


def _step_ms(steps: DecoderSteps, rows: int, size: int, repeats: int) -> float:
    """The best of a few runs of steps back to back."""
    codes = np.random.default_rng(0).integers(
        0, RELEASED.codebook_size, (size, RELEASED.num_code_groups)
    )
    pieces = [Piece(slot, codes, False) for slot in range(rows)]
    best_s = float("inf")
    for _ in range(_TRIES):
        began_s = time.perf_counter()
        for _ in range(repeats):
            launched = steps.launch(pieces, size)
        if launched.done is not None:
            launched.done.synchronize()
        best_s = min(best_s, (time.perf_counter() - began_s) / repeats)
    return 1000 * best_s


def in_a_process(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """`start` of a process that has chosen nothing yet.

    Raises:
        CalledProcessError: it failed; what it said is on the terminal.
    """
    env = {**os.environ, **(_BETTER_GUESS if variant == "off-b" else {})}
    options = ["--one", variant, "--profile", args.profile, "--repeats", str(args.repeats)]
    done = subprocess.run(
        [sys.executable, "-m", "load_tests.stages.decoder_start", *options],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a column for each variant."""
    lines = [*table_head(("", *found), left=1)]
    names = dict.fromkeys(name for each in found.values() for name in each["start_s"])
    for name in names:
        cells = [f"{each['start_s'].get(name, 0.0):.2f}" for each in found.values()]
        lines.append(table_line([f"{name}, s", *cells]))
    lines.append(table_line(["memory, MiB", *(str(each["memory_mib"]) for each in found.values())]))
    for step in dict.fromkeys(step for each in found.values() for step in each["ms"]):
        cells = [f"{each['ms'][step]:.2f}" for each in found.values()]
        lines.append(table_line([f"{step}, ms", *cells]))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.stages.decoder_start", description=__doc__
    )
    parser.add_argument("--variants", nargs="+", default=["off", "off-b", "2", "3", "10"])
    parser.add_argument("--profile", choices=tuple(PROFILES), default="throughput")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    args = parser.parse_args(arguments)
    if args.one:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(json.dumps(start(args.one, args.profile, args.repeats, device)))
        return 0
    for variant in args.variants:
        trials_of(variant)
    found: dict[str, dict[str, Any]] = {}
    for variant in args.variants:
        found[variant] = in_a_process(variant, args)
        print(f"\n{table(found)}", flush=True)
        if args.out:
            facts = circumstances.environment(args.commit)
            files.write_json(args.out, {"facts": facts, "profile": args.profile, "starts": found})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
