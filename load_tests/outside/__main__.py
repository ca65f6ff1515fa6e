"""`python -m load_tests.outside bench|locust`: clients that nobody here wrote, against a server.

bench: nari-labs' tts_bench at one rate after the other, each followed by our own client at the
same; both figures stand side by side. locust: listeners over time, in a shape. Exit status 1: a
request failed or, with locust, was dry for more than 50 ms; 2: the client cannot be run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from load_tests.loops.options import frames_of
from load_tests.loops.shapes import SHAPES
from load_tests.outside import locust_run, report, tts_bench
from load_tests.reports import circumstances
from load_tests.servers.child import say


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.outside", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--voice", default="alloy", help="default: alloy, which every server has")
    parser.add_argument(
        "--frames",
        default="natural",
        help="codec frames (80 ms each) every request is forced to, for weights whose speech does"
        " not end: N, MIN:MAX (locust), or `natural`",
    )
    parser.add_argument("--commit", help="what to report where there is no git repository")
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench")
    bench.add_argument("--source", type=Path, required=True, help="its folder tts_bench/src")
    bench.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="that has what tts_bench imports"
    )
    bench.add_argument("--rates", type=float, nargs="+", default=[4.0])
    bench.add_argument("--duration", type=float, default=30.0, help="s")
    bench.add_argument("--warm-up", type=float, default=10.0, help="s")
    bench.add_argument("--seed", type=int, default=0)
    locust = commands.add_parser("locust")
    locust.add_argument("--shape", choices=SHAPES, default="steady")
    locust.add_argument("--users", type=int, default=16)
    locust.add_argument("--minutes", type=float, default=2.0)
    locust.add_argument("--processes", type=int, default=1, help="Locust's own, on this machine")
    return parser.parse_args(arguments)


def bench(args: argparse.Namespace, facts: dict[str, Any]) -> int:
    low, high = frames_of(args.frames)
    if low != high:
        raise tts_bench.OutsideFailed("tts_bench asks for one length: --frames N or natural")
    tts_bench.check(args.python, args.source)
    model = tts_bench.model_of(args.url)
    results: list[dict[str, Any]] = []
    good = True
    for rate in args.rates:
        load = tts_bench.Load(
            args.url, model, args.voice, rate, args.duration, args.warm_up, args.seed, low
        )
        both = {
            "tts_bench": tts_bench.theirs(load, args.python, args.source, args.out),
            "load_tests": tts_bench.ours(load),
        }
        results.append(tts_bench.as_json(load, both))
        good = good and all(f.complete == f.requests > 0 for f in both.values())
        report.compared(args.out, facts, results)
    say((args.out / "report.md").read_text(encoding="utf-8"))
    return int(not good)


def locust(args: argparse.Namespace, facts: dict[str, Any]) -> int:
    load = locust_run.Load(
        args.url, args.shape, args.users, args.minutes, args.voice, args.frames, args.processes
    )
    status = locust_run.run(load, args.out)
    facts |= {"shape": args.shape, "users": args.users, "minutes": args.minutes}
    outcome = locust_run.outcome(args.out)
    say(report.locust(args.out, facts, outcome, locust_run.history(args.out)))
    if not outcome["rows"]:
        say((args.out / "locust.log").read_text(encoding="utf-8")[-2000:])
    return status


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    facts = circumstances.environment(args.commit)
    try:
        return bench(args, facts) if args.command == "bench" else locust(args, facts)
    except tts_bench.OutsideFailed as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
