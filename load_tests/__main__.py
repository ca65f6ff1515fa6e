"""`python -m load_tests --url URL closed|open|burst|sweep`: measure a server that is running."""

import argparse
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load_tests.loops.client import SpeechClient
from load_tests.loops.ladder import MIN_CLOSED_REQUESTS, climb
from load_tests.loops.level import Level
from load_tests.loops.options import (
    add_ladder_options,
    add_workload_options,
    client_of,
    ladders_of,
    workload_of,
)
from load_tests.loops.retrying import retried
from load_tests.loops.runner import (
    BurstLoop,
    ClosedLoop,
    OpenLoop,
    run_burst,
    run_closed,
    run_loop,
    run_open,
)
from load_tests.loops.workload import Workload
from load_tests.reports import circumstances, files, plots, report
from load_tests.reports.load_points import load_points


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--report", type=Path, help="markdown file")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="ask again so often when refused, and wait as told, as OpenAI's clients do (2)",
    )
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
    burst = loops.add_parser("burst", help="many at the same moment")
    burst.add_argument("--size", type=int, default=16)
    burst.add_argument("--times", type=int, default=5)
    burst.add_argument("--pause", type=float, default=3.0, help="s, idle between two bursts")
    burst.add_argument("--beside", type=int, default=0, help="streams that run beside them")
    burst.add_argument("--cold", action="store_true", help="it is the server's first load: say so")
    add_ladder_options(loops.add_parser("sweep", help="burst, closed and open ladders"))
    return parser.parse_args(arguments)


async def measure(args: argparse.Namespace) -> int:
    """Run the loop asked for; 1 where every request failed."""
    workload = workload_of(args)
    facts: dict[str, Any] = {**circumstances.environment(args.commit), "url": args.url}
    facts["workload"] = asdict(workload)
    levels: list[Level] = []
    said: list[str] = []
    print("\n".join(report.table_head()), flush=True)
    async with client_of(args, args.url, args.retries) as client:
        facts["health"] = await client.get_json("/health")
        async with aclosing(_levels(args, client, workload)) as steps:
            async for step in steps:
                if isinstance(step, str):
                    said.append(f"- {step}")
                    continue
                levels.append(step)
                if args.retries:
                    said.append(f"- {step.load}: {retried(step.run.results).text}")
                print(report.table_line(report.row(step)), flush=True)
                if args.out:
                    entries = [level.as_json(requests=args.requests_in_json) for level in levels]
                    files.write_json(args.out, {**facts, "levels": entries, "notes": said})
    text = report.markdown(levels, facts) + "".join(f"{line}\n" for line in said)
    for line in (*report.notes(levels), *said):
        print(line)
    if args.report:
        files.write_text(args.report, text)
    points = load_points([level.as_json(requests=False) for level in levels])
    if args.plot and not plots.loops(args.plot, {args.url: points}):
        print("no plot: matplotlib is not installed", file=sys.stderr)
    return int(all(level.summary.failures == level.summary.requests for level in levels))


async def _levels(
    args: argparse.Namespace, client: SpeechClient, workload: Workload
) -> AsyncGenerator[Level | str, None]:
    if args.loop == "closed":
        requests = args.requests or max(MIN_CLOSED_REQUESTS, 4 * args.streams)
        plan = ClosedLoop(args.streams, requests, max_s=args.max_s)
        yield Level.of(await run_closed(client, workload, plan))
    elif args.loop == "open":
        rates = OpenLoop(args.rate, args.duration, args.warm_up, args.seed)
        yield Level.of(await run_open(client, workload, rates))
    elif args.loop == "burst":
        bursts = BurstLoop(args.size, args.times, args.pause, args.cold, args.beside)
        yield Level.of(await run_burst(client, workload, bursts))
    else:
        async with aclosing(climb(client, workload, ladders_of(args))) as steps:
            async for step in steps:
                yield step


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    return run_loop(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
