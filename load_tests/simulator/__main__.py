"""`python -m load_tests.simulator`: the scaling policy that ships, on thousands of GPUs.

Without `--load` it shows what it must: p95 of first audio through a crowd ten times as large, with
the smallest number of warm spare replicas that holds it, and the cost of a day against an oracle.
Exit status 1: one of the two does not hold.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from load_tests.reports import files
from load_tests.servers.child import say
from load_tests.simulator import loads
from load_tests.simulator.measured import Service
from load_tests.simulator.report import Row, plot, table
from load_tests.simulator.run import oracle_gpu_hours, simulate
from serve_app.scaling.tuning import Tuning

# The p95 of first audio that a crowd must not push up, in seconds; and what a day may cost.
HELD_S = 0.1
COST = 1.15


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.simulator", description=__doc__)
    parser.add_argument("--load", nargs="*", choices=tuple(loads.LOADS), default=[])
    parser.add_argument("--recorded", type=Path, nargs="*", default=[], help="JSON lines")
    parser.add_argument(
        "--rate", type=float, default=400.0, help="requests/s, usual or at the peak"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--spare", type=int, default=Tuning().spare, help="warm replicas")
    parser.add_argument("--start-s", type=float, default=Service().start_s)
    parser.add_argument("--node-s", type=float, default=0.0, help="until a machine is there")
    parser.add_argument("--capacity", type=int, default=Service().capacity)
    parser.add_argument("--most", type=int, default=10_000, help="GPUs there are")
    parser.add_argument("--tick-s", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, load: loads.Load, tuning: Tuning) -> Row:
    service = Service(args.capacity, args.start_s, args.node_s)
    outcome = simulate(load, tuning, service, most=args.most, tick_s=args.tick_s)
    return Row(outcome, tuning, oracle_gpu_hours(load, tuning, service))


def smallest_spare(args: argparse.Namespace, seed: int, limit: int = 64) -> Row:
    """The crowd with as few warm spare replicas as hold its p95, and no request refused for 5 %."""
    load = loads.flash_crowd(seed, args.rate)
    low, high = 0, limit
    best = run(args, load, Tuning(spare=high))
    while low < high:
        middle = (low + high) // 2
        row = run(args, load, Tuning(spare=middle))
        if row.outcome.first_audio_s(0.95, 600, 1200) <= HELD_S:
            best, high = row, middle
        else:
            low = middle + 1
    return best


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    rows: list[Row] = []
    held = True
    tuning = replace(Tuning(), spare=args.spare)
    for seed in args.seeds:
        if args.load or args.recorded:
            asked = [loads.LOADS[name](seed, args.rate) for name in args.load]
            rows += [
                run(args, load, tuning) for load in (*asked, *map(loads.recorded, args.recorded))
            ]
            continue
        crowd, day = smallest_spare(args, seed), run(args, loads.diurnal(seed, args.rate), tuning)
        p95_s = crowd.outcome.first_audio_s(0.95, 600, 1200)
        say(f"seed {seed}: {crowd.tuning.spare} spare hold {1000 * p95_s:.1f} ms in the crowd")
        say(f"seed {seed}: a day costs {day.cost:.3f} of the oracle's")
        held = held and p95_s <= HELD_S and day.cost <= COST
        rows += [crowd, day]
    text = table(rows)
    say(text)
    if args.out:
        files.write_text(args.out / "report.md", f"`{' '.join(sys.orig_argv)}`\n\n{text}")
        for number, row in enumerate(rows):
            plot(args.out / f"{number}-{row.outcome.load.replace(' ', '-')}.png", row)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
