"""`python -m load_tests.simulator.balance`: how evenly streams lie on replicas, what it costs.

Closed loops that begin at one moment, before replicas with the step times of `measured.py` and the
routing that ships. Each is compared with one replica that has its share of the streams, behind as
many ingresses.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from statistics import mean
from typing import Final

from load_tests.loops.metrics import percentile
from load_tests.reports.report import table_head, table_line
from load_tests.simulator.crowd import Seen, Setting, measure
from load_tests.simulator.measured import Service

# Of the streams that each replica would have.
_FAR: Final = 0.1
# Of the time simulated.
_BEGINNING: Final = 0.15
_COLUMNS: Final = (
    *("places", "streams each", "ingresses", "replicas", "of one's", "first audio p50 / p95, ms"),
    *("p95 of one's", "from the mean", "more than 10 % from it", "refused"),
)


def unevenness(streams: Sequence[Sequence[int]]) -> tuple[float, float]:
    """How far a replica is from the mean of all, in streams, and the share of moments in which one
    is further from it than a tenth; `streams` are those of each replica at each moment.
    """
    if not streams:
        return 0.0, 0.0
    means = [mean(moment) for moment in streams]
    away = [
        [abs(each - middle) for each in moment]
        for moment, middle in zip(streams, means, strict=True)
    ]
    far = [max(each) > _FAR * middle for each, middle in zip(away, means, strict=True)]
    return mean(mean(each) for each in away), mean(far)


def _settled(seen: Seen) -> tuple[list[float], list[tuple[int, ...]]]:
    """First audio (s) and streams, without the beginning, in which all ask at one moment."""
    first_s = [
        first_s
        for first_s, asked_s in zip(seen.first_s, seen.asked_s, strict=True)
        if asked_s > _BEGINNING * seen.span_s
    ]
    return first_s, seen.streams[round(_BEGINNING * len(seen.streams)) :]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m load_tests.simulator.balance")
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--places", type=int, default=256, help="of a replica")
    parser.add_argument("--each", type=int, nargs="+", default=[64, 256], help="streams of each")
    parser.add_argument("--ingresses", type=int, default=10)
    parser.add_argument("--slower", type=float, default=1.0, help="times a step of an H200's")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    print("\n".join(table_head(_COLUMNS, 0)))
    service = Service(args.places, slower=args.slower)
    for each in args.each:
        one: tuple[float, float] | None = None
        for replicas in (1, *args.replicas):
            setting = Setting(service, replicas, args.ingresses)
            seen = measure(setting, args.seconds, args.seed, streams=each * replicas, at_once=True)
            first_s, streams = _settled(seen)
            p95_s = percentile(first_s, 0.95)
            one = one or (seen.per_s, p95_s)
            away, far = unevenness(streams)
            cells = [
                *map(str, (args.places, each, args.ingresses, replicas)),
                f"{100 * seen.per_s / replicas / one[0]:.1f} %",
                f"{1000 * percentile(first_s, 0.5):.0f} / {1000 * p95_s:.0f}",
                f"{p95_s / one[1]:.2f}",
                f"{away:.1f}",
                f"{100 * far:.0f} %",
                str(seen.refusals),
            ]
            print(table_line(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
