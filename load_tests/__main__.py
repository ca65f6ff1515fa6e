"""`python -m load_tests --url URL closed|open|sweep`: measure a server that is running."""

import argparse
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from load_tests.loops.client import WAV_HEADER_BYTES, AudioShape, SpeechClient
from load_tests.loops.runner import ClosedLoop, OpenLoop, run_closed, run_loop, run_open
from load_tests.loops.workload import Workload
from load_tests.reports import plots, report
from load_tests.reports.load_points import load_points
from load_tests.reports.report import Level

# Past this a rate ladder ends: the server is overloaded, and higher rates only take longer to
# show it.
STOP_AT_P95_S: Final = 1.0
CLOSED_LADDER: Final = (1, 16, 64, 256)
OPEN_LADDER: Final = (5.0, 20.0, 40.0, 60.0, 80.0)
_MIN_CLOSED_REQUESTS: Final = 20
# Left for the answers to the last arrivals of an open loop.
_DRAIN_S: Final = 5.0


class NoTime(str):
    """A line about a level that was left out for want of time."""


@dataclass(frozen=True, slots=True)
class Ladders:
    """What a sweep runs through; `deadline_s` is of `time.perf_counter`.

    seeds: an open level is run once with each; closed ones with the workload's own.
    """

    closed: tuple[int, ...] = CLOSED_LADDER
    open: tuple[float, ...] = OPEN_LADDER
    rounds: int = 4
    duration_s: float = 15.0
    warm_up_s: float = 3.0
    seeds: tuple[int, ...] = (0,)
    deadline_s: float | None = None

    def left_s(self) -> float | None:
        return None if self.deadline_s is None else self.deadline_s - time.perf_counter()


async def climb(
    client: SpeechClient,
    workload: Workload,
    ladders: Ladders,
    done: Mapping[ClosedLoop | OpenLoop, float] | None = None,
) -> AsyncGenerator[Level | str, None]:
    """Yield each level when it is done, and a line of text for each that is left out.

    `done` are levels of an earlier run that are not to be repeated, with their p95 of first
    playable audio in seconds; closed ones without `max_s`.
    """
    done = done or {}
    for streams in ladders.closed:
        requests = max(_MIN_CLOSED_REQUESTS, ladders.rounds * streams)
        plan = ClosedLoop(streams, requests)
        if plan in done:
            continue
        left_s = ladders.left_s()
        if left_s is not None and left_s < _DRAIN_S:
            yield NoTime(f"closed, {plan.label}: left out, no time")
            continue
        max_s = None if left_s is None else left_s - _DRAIN_S
        yield Level.of(await run_closed(client, workload, replace(plan, max_s=max_s)))
    for rate_hz in ladders.open:
        worst_s = 0.0
        for seed in ladders.seeds:
            plan = OpenLoop(rate_hz, ladders.duration_s, ladders.warm_up_s, seed)
            if plan in done:
                worst_s = max(worst_s, done[plan])
                continue
            left_s = ladders.left_s()
            if left_s is not None and left_s < plan.warm_up_s + plan.duration_s + _DRAIN_S:
                yield NoTime(f"open, {plan.label}, seed {seed}: left out, no time")
                continue
            level = Level.of(await run_open(client, replace(workload, seed=seed), plan))
            yield level
            worst_s = max(worst_s, level.summary.first_playable_s.p95)
        if not worst_s <= STOP_AT_P95_S:
            yield f"open: no higher rates, p95 of first playable audio is over {STOP_AT_P95_S:g} s"
            return


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frames",
        default="55",
        help="codec frames (80 ms each) every request is forced to: N, MIN:MAX, or `natural`",
    )
    parser.add_argument("--voice", default="ryan")
    parser.add_argument("--language", default="english")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--response-format", choices=("pcm", "wav"), default="pcm")
    parser.add_argument("--seed", type=int, default=0, help="of texts, seeds and arrivals")
    parser.add_argument("--sample-rate", type=int, default=24000, help="Hz")
    parser.add_argument("--samples-per-frame", type=int, default=1920)
    parser.add_argument("--timeout-s", type=float, default=60.0, help="of one request")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    parser.add_argument("--requests-in-json", action="store_true", help="one entry per request")
    parser.add_argument("--plot", type=Path, help="PNG; needs matplotlib")


def add_ladder_options(parser: argparse.ArgumentParser) -> None:
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


def client_of(args: argparse.Namespace, url: str) -> SpeechClient:
    header = WAV_HEADER_BYTES if args.response_format == "wav" else 0
    shape = AudioShape(args.sample_rate, args.samples_per_frame, header)
    return SpeechClient(url, shape, args.timeout_s)


def ladders_of(args: argparse.Namespace, deadline_s: float | None = None) -> Ladders:
    return Ladders(
        closed=tuple(args.closed),
        open=tuple(args.open),
        rounds=args.rounds,
        duration_s=args.duration,
        warm_up_s=args.warm_up,
        seeds=tuple(args.seeds or (args.seed,)),
        deadline_s=deadline_s,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--report", type=Path, help="markdown file")
    add_workload_options(parser)
    loops = parser.add_subparsers(dest="loop", required=True)
    closed = loops.add_parser("closed", help="a fixed number of streams")
    closed.add_argument("--streams", type=int, default=16)
    closed.add_argument("--requests", type=int, help="default: four per stream, at least 20")
    closed.add_argument("--max-s", type=float, help="send nothing new after this")
    opened = loops.add_parser("open", help="Poisson arrivals")
    opened.add_argument("--rate", type=float, default=5.0, help="requests/s")
    opened.add_argument("--duration", type=float, default=30.0, help="s")
    opened.add_argument("--warm-up", type=float, default=3.0, help="s")
    add_ladder_options(loops.add_parser("sweep", help="closed and open ladders"))
    return parser.parse_args(arguments)


async def measure(args: argparse.Namespace) -> int:
    """Run the loop asked for; 1 where every request failed."""
    workload = workload_of(args)
    facts: dict[str, Any] = {**report.environment(args.commit), "url": args.url}
    facts["workload"] = asdict(workload)
    levels: list[Level] = []
    said: list[str] = []
    print("\n".join(report.table_head()), flush=True)
    async with client_of(args, args.url) as client:
        facts["health"] = await client.get_json("/health")
        async with aclosing(_levels(args, client, workload)) as steps:
            async for step in steps:
                if isinstance(step, str):
                    said.append(f"- {step}")
                    continue
                levels.append(step)
                print(report.table_line(report.row(step)), flush=True)
                if args.out:
                    entries = [level.as_json(requests=args.requests_in_json) for level in levels]
                    report.write_json(args.out, {**facts, "levels": entries, "notes": said})
    text = report.markdown(levels, facts) + "".join(f"{line}\n" for line in said)
    for line in (*report.notes(levels), *said):
        print(line)
    if args.report:
        report.write_text(args.report, text)
    points = load_points([level.as_json(requests=False) for level in levels])
    if args.plot and not plots.loops(args.plot, {args.url: points}):
        print("no plot: matplotlib is not installed", file=sys.stderr)
    return int(all(level.summary.failures == level.summary.requests for level in levels))


async def _levels(
    args: argparse.Namespace, client: SpeechClient, workload: Workload
) -> AsyncGenerator[Level | str, None]:
    if args.loop == "closed":
        requests = args.requests or max(_MIN_CLOSED_REQUESTS, 4 * args.streams)
        plan = ClosedLoop(args.streams, requests, max_s=args.max_s)
        yield Level.of(await run_closed(client, workload, plan))
    elif args.loop == "open":
        rates = OpenLoop(args.rate, args.duration, args.warm_up, args.seed)
        yield Level.of(await run_open(client, workload, rates))
    else:
        async with aclosing(climb(client, workload, ladders_of(args))) as steps:
            async for step in steps:
                yield step


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    return run_loop(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
