"""`python -m load_tests.simulator`: the scaling policy that ships, on thousands of GPUs.

Without `--load` it shows what it must, for each seed: p95 of first audio through a crowd ten times
as large, with the smallest number of warm spare replicas that holds it; the cost of a day against
an oracle; and what is refused when a quarter of all replicas dies. Exit status 1: one fails.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from load_tests.reports import files
from load_tests.servers.child import say
from load_tests.simulator import loads, logs
from load_tests.simulator.measured import Service
from load_tests.simulator.report import Row, over_seeds, plot, table
from load_tests.simulator.run import oracle_replicas, simulate
from serve_app.scaling.tuning import Tuning

# The p95 of first audio that a crowd must not push up, in seconds; and what a day may cost.
HELD_S = 0.1
COST = 1.15
# Of the requests of an hour in which a quarter of the replicas dies three times.
REFUSED = 0.02


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.simulator", description=__doc__)
    parser.add_argument("--load", nargs="*", choices=tuple(loads.LOADS), default=[])
    parser.add_argument("--recorded", type=Path, nargs="*", default=[], help="JSON lines")
    parser.add_argument(
        "--log",
        type=Path,
        nargs="*",
        default=[],
        help="of ingresses, all together one load: .../logs/serve/replica_*Ingress*.log",
    )
    parser.add_argument(
        "--rate", type=float, default=400.0, help="requests/s, usual or at the peak"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--spare", type=int, default=Tuning().spare, help="warm replicas")
    parser.add_argument("--start-s", type=float, default=Service().start_s)
    parser.add_argument("--node-s", type=float, default=0.0, help="until a machine is there")
    parser.add_argument("--capacity", type=int, default=Service().capacity)
    parser.add_argument("--most", type=int, default=10_000, help="GPUs there are")
    parser.add_argument("--tick-s", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, load: loads.Load, tuning: Tuning, seed: int) -> Row:
    service = Service(args.capacity, args.start_s, args.node_s)
    outcome = simulate(load, tuning, service, most=args.most, tick_s=args.tick_s)
    return Row(outcome, tuning, oracle_replicas(load, tuning, service), seed)


def smallest_spare(args: argparse.Namespace, seed: int, limit: int = 64) -> Row:
    """The crowd with as few warm spare replicas as hold its p95, and no request refused for 5 %."""
    load = loads.flash_crowd(seed, args.rate)
    low, high = 0, limit
    best = run(args, load, Tuning(spare=high), seed)
    while low < high:
        middle = (low + high) // 2
        row = run(args, load, Tuning(spare=middle), seed)
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
    logged = list(map(loads.recorded, args.recorded))
    if args.log:
        found = logs.read(args.log)
        say(f"{len(found.rows)} requests; {found.refused} that were refused are not among them")
        logged.append(loads.of_requests("log", found.rows))
    for seed in args.seeds:
        if args.load or logged:
            asked = [loads.LOADS[name](seed, args.rate) for name in args.load]
            # Nothing in these is drawn.
            asked += logged if seed == args.seeds[0] else []
            rows += [run(args, load, tuning, seed) for load in asked]
            continue
        crowd = smallest_spare(args, seed)
        day = run(args, loads.diurnal(seed, args.rate), tuning, seed)
        loss = run(args, loads.node_loss(seed, args.rate), tuning, seed)
        p95_s = crowd.outcome.first_audio_s(0.95, 600, 1200)
        say(f"seed {seed}: {crowd.tuning.spare} spare hold {1000 * p95_s:.1f} ms in the crowd")
        say(f"seed {seed}: a day costs {day.cost:.3f} of the oracle's")
        share = loss.outcome.refused / loss.outcome.requests
        say(f"seed {seed}: {share:.2%} refused while a quarter of all replicas dies, three times")
        held = held and p95_s <= HELD_S and day.cost <= COST and share <= REFUSED
        rows += [crowd, day, loss]
    text = table(rows) + "\n" + over_seeds(rows)
    say(text)
    if args.out:
        files.write_text(args.out / "report.md", f"`{' '.join(sys.orig_argv)}`\n\n{text}")
        for number, row in enumerate(rows):
            name = row.outcome.load.replace(" ", "-")
            plot(args.out / f"{number}-{name}-{row.seed}.png", row)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
