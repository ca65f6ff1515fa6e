"""`python -m load_tests.scaling`: a step of load up and back on several nodes, and what scales.

Starts a cluster of several raylets on this machine, each with room for one replica of each stage,
and the server with the policy that ships, but for how long it waits before it gives back. Records
replicas, streams, first audio and decisions, and compares every stream with the undisturbed one.
With --update the settings are changed before the way back, which replaces every process. With
--growth the load stays and the nodes change: a second one joins, is drained, joins again and is
lost. Exit status 1: a stage did not get what there is, was asked for more of, or did not come back,
the update was not seen to end, or a stream was harmed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.chaos.changes import Operator
from load_tests.chaos.settings import driver_of
from load_tests.loops.runner import run_loop
from load_tests.nodes.settings import (
    add_server_options,
    completed,
    default_out,
    rooms,
    spread_config,
)
from load_tests.reports import circumstances, files
from load_tests.scaling import growth, report
from load_tests.scaling.step import Plan, StepOfLoad
from load_tests.servers.child import say
from load_tests.servers.ready import ready_server
from load_tests.servers.server import Server, ServerFailed
from load_tests.servers.steering import Steering
from serve_app.launch.overrides import with_model
from serve_app.serve_config import STAGES

# What ships is minutes; a test of some minutes sees nothing given back by it.
_HASTE: Final = {"down_after_s": 20.0, "down_every_s": 5.0}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.scaling", description=__doc__)
    add_server_options(parser)
    parser.add_argument("--capacity", type=int, default=4, help="streams of a replica")
    parser.add_argument("--base", type=int, default=1, help="streams before and after the step")
    parser.add_argument("--streams", type=int, help="of the step; default: 3/4 of all nodes'")
    parser.add_argument("--base-s", type=float, default=15.0)
    parser.add_argument("--step-s", type=float, default=90.0)
    parser.add_argument("--back-s", type=float, default=90.0, help="at most")
    parser.add_argument(
        "--update",
        action="store_true",
        help="after the step change the settings, under a load that all nodes but one carry",
    )
    parser.add_argument("--update-s", type=float, default=240.0, help="at most")
    parser.add_argument("--growth", action="store_true", help="a node that comes and goes")
    parser.add_argument(
        "--turn-s", type=float, default=75.0, help="at least, with each number of nodes"
    )
    parser.add_argument(
        "--turn-most-s", type=float, default=600.0, help="at most: until all is as it should be"
    )
    parser.add_argument("--out", type=Path, default=default_out("scaling"))
    parser.set_defaults(frames="40:160", requests=6)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    args = completed(parse(arguments))
    if args.growth:
        args.nodes = 2
    if args.streams is None:
        args.streams = args.capacity * args.nodes * 3 // 4
    args.override = [
        f"talker.max_num_seqs={args.capacity}",
        f"speech_decoder.max_streams={2 * args.capacity}",
        *args.override,
    ]
    config = spread_config(args, 1, args.nodes, _HASTE)
    facts: dict[str, Any] = {**circumstances.environment(args.commit), "config": config}
    facts |= {"placement": args.placement, "policy": _HASTE, "capacity": args.capacity}

    def save(result: dict[str, Any]) -> dict[str, Any]:
        result = files.to_json({"facts": facts, **result})
        files.write_json(args.out / "trace.json", result)
        report.compose(args.out, result)
        return result

    if args.growth:
        return _grown(args, config, facts)
    try:
        with (
            ready_server(args, config, args.checkpoint, rooms(args)) as (server, facts["ready_s"]),
            Steering(server) as steering,
        ):
            run = StepOfLoad(
                _plan(args),
                server,
                steering,
                driver_of(args, server.url),
                _operator(args, config, server) if args.update else None,
                save,
            )
            result = save(run_loop(run.run))
    except ServerFailed:
        return 2
    say("\n" + (args.out / "report.md").read_text(encoding="utf-8"))
    return int(bool(report.faults(result)))


def _grown(args: argparse.Namespace, config: dict[str, Any], facts: dict[str, Any]) -> int:
    """Nodes that come and go; the exit status."""
    head, first, second = rooms(args)

    def save(result: dict[str, Any]) -> dict[str, Any]:
        result = files.to_json({"facts": facts, **result})
        files.write_json(args.out / "growth.json", result)
        return result

    try:
        with (
            ready_server(args, config, args.checkpoint, [head, first]) as (
                server,
                facts["ready_s"],
            ),
            Steering(server, looking=True) as steering,
        ):
            run = growth.Growth(
                server,
                steering,
                driver_of(args, server.url),
                [name for name in STAGES[args.placement] if name != "Ingress"],
                second,
                args.turn_s,
                args.turn_most_s,
                save,
            )
            result = save(run_loop(run.run))
    except ServerFailed:
        return 2
    wrong = growth.faults(result)
    say("\n".join(["", *growth.lines(result), "", *(wrong or ["As it should be."])]))
    return int(bool(wrong))


def _plan(args: argparse.Namespace) -> Plan:
    return Plan(
        placement=args.placement,
        most=args.nodes,
        capacity=args.capacity,
        base=args.base,
        streams=args.streams,
        base_s=args.base_s,
        step_s=args.step_s,
        back_s=args.back_s,
    )


def _operator(args: argparse.Namespace, config: dict[str, Any], server: Server) -> Operator:
    model = args.checkpoint and str(args.checkpoint.resolve())
    named = with_model(config, model, None)
    return Operator(named, server, args.placement, args.nodes, args.update_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
