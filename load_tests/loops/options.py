"""What a load is told on the command line."""

import argparse
from pathlib import Path

from load_tests.loops.client import WAV_HEADER_BYTES, AudioShape, SpeechClient
from load_tests.loops.ladder import BURST_LADDER, CLOSED_LADDER, OPEN_LADDER, Ladders
from load_tests.loops.retrying import RetryingClient
from load_tests.loops.workload import Workload

FORMATS = ("pcm", "wav", "mp3", "opus", "aac", "flac")


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frames",
        default="55",
        help="codec frames (80 ms each) every request is forced to: N, MIN:MAX, or `natural`",
    )
    parser.add_argument("--voice", default="ryan")
    parser.add_argument("--language", default="english")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--response-format", choices=FORMATS, default="pcm")
    parser.add_argument("--seed", type=int, default=0, help="of texts, seeds and arrivals")
    parser.add_argument("--sample-rate", type=int, default=24000, help="Hz")
    parser.add_argument("--samples-per-frame", type=int, default=1920)
    parser.add_argument("--timeout-s", type=float, default=60.0, help="of one request")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    parser.add_argument("--requests-in-json", action="store_true", help="one entry per request")
    parser.add_argument("--plot", type=Path, help="PNG; needs matplotlib")


def add_ladder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--burst", type=int, nargs="*", default=list(BURST_LADDER))
    parser.add_argument("--bursts", type=int, default=5, help="of each size")
    parser.add_argument("--pause", type=float, default=3.0, help="s, idle between two bursts")
    parser.add_argument("--beside", type=int, default=0, help="streams that run beside bursts")
    parser.add_argument("--closed", type=int, nargs="*", default=list(CLOSED_LADDER))
    parser.add_argument("--open", type=float, nargs="*", default=list(OPEN_LADDER))
    parser.add_argument("--rounds", type=int, default=4, help="measured requests per closed stream")
    parser.add_argument("--seeds", type=int, nargs="*", help="of the open levels; default: --seed")
    parser.add_argument("--duration", type=float, default=15.0, help="s, of each open level")
    parser.add_argument("--warm-up", type=float, default=3.0, help="s, before each open level")


def workload_of(args: argparse.Namespace) -> Workload:
    low, high = frames_of(args.frames)
    return Workload(
        voice=args.voice,
        model=args.model,
        language=args.language,
        min_frames=low,
        max_frames=high,
        response_format=args.response_format,
        seed=args.seed,
    )


def frames_of(text: str) -> tuple[int | None, int | None]:
    """Read `--frames`: "55", "30:80" or "natural"."""
    if text == "natural":
        return None, None
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def client_of(args: argparse.Namespace, url: str, retries: int = 0) -> SpeechClient:
    header = WAV_HEADER_BYTES if args.response_format == "wav" else 0
    is_encoded = args.response_format not in ("pcm", "wav")
    shape = AudioShape(args.sample_rate, args.samples_per_frame, header, is_encoded)
    if retries:
        return RetryingClient(url, shape, args.timeout_s, retries=retries, seed=args.seed)
    return SpeechClient(url, shape, args.timeout_s)


def ladders_of(args: argparse.Namespace, deadline_s: float | None = None) -> Ladders:
    return Ladders(
        burst=tuple(args.burst),
        closed=tuple(args.closed),
        open=tuple(args.open),
        rounds=args.rounds,
        bursts=args.bursts,
        pause_s=args.pause,
        beside=args.beside,
        duration_s=args.duration,
        warm_up_s=args.warm_up,
        seeds=tuple(args.seeds or (args.seed,)),
        deadline_s=deadline_s,
    )
