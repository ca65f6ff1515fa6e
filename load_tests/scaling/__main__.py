"""`python -m load_tests.scaling`: a step of load up and back on several nodes, and what scales.

Starts a cluster of several raylets on this machine, each with room for one replica of each stage,
and the server with the policy that ships, but for how long it waits before it gives back. Records
replicas, streams, first audio and decisions, and compares every stream with the undisturbed one.
Exit status 1: a stage did not get what there is, or did not come back, or a stream was harmed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from load_tests.chaos.loads import ended
from load_tests.chaos.outcomes import Turn, by_phase
from load_tests.chaos.settings import driver_of
from load_tests.loops.runner import run_loop
from load_tests.nodes.settings import (
    add_server_options,
    completed,
    default_out,
    rooms,
    spread_config,
)
from load_tests.reports import chaos_report, circumstances, files
from load_tests.scaling import report
from load_tests.scaling.trace import (
    apart_s,
    decisions,
    first_audio_steps,
    replica_steps,
    stream_steps,
)
from load_tests.servers.child import say
from load_tests.servers.processes import STAGES as PROCESSES
from load_tests.servers.processes import descendants
from load_tests.servers.ready import ready_server
from load_tests.servers.server import Server, ServerFailed
from load_tests.servers.steering import Steering
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
    parser.add_argument("--out", type=Path, default=default_out("scaling"))
    parser.set_defaults(frames="40:160", requests=6)
    return parser.parse_args(arguments)


async def stepped(args: argparse.Namespace, server: Server, steering: Steering) -> dict[str, Any]:
    """Put the load on, and say what came of it: plain values."""
    driver = driver_of(args, server.url)
    turns: list[Turn] = []

    def done(turn: Turn) -> None:
        ended(turn)
        turns.append(turn)
        say(chaos_report.turn_line(turn))

    if not args.no_compare:
        done(await driver.learn())
    began_s, began_utc_s = time.perf_counter(), time.time()
    seen = len(steering.readings)
    for name, streams, seconds in (
        ("before", args.base, args.base_s),
        ("step", args.streams, args.step_s),
    ):
        turn = Turn(name, time.perf_counter())
        await driver.steady(turn, turn.begin_s + seconds, streams)
        done(turn)
    nodes = sets_of(server)
    turn = Turn("after", time.perf_counter())
    while time.perf_counter() - turn.begin_s < args.back_s:
        # Streams begin all the while, so that replicas are taken away under streams.
        await driver.steady(turn, time.perf_counter() + 3.0, args.base)
        last = steering.readings[-1].target
        if all(last.get(name, 0) <= 1 for name in STAGES[args.placement]):
            break
    done(turn)
    stages = [name for name in STAGES[args.placement] if name != "Ingress"]
    running, target = replica_steps(steering.readings[seen:], began_s)
    outcomes = [outcome for turn in turns[-3:] for outcome in turn.outcomes]
    opened, waiting = stream_steps(outcomes, began_s)
    end_s = time.perf_counter() - began_s
    step_s, after_s = turns[-2].begin_s - began_s, turns[-1].begin_s - began_s
    log = "\n".join(path.read_text(errors="replace") for path in _controller_logs(server))
    return {
        "stages": stages,
        "most": args.nodes,
        "end_s": end_s,
        "phases": [asdict(figures) for figures in by_phase(turns)],
        "turns": [
            {"name": t.phase, "begin_s": t.begin_s - began_s, "end_s": t.end_s - began_s}
            for t in turns[-3:]
        ],
        "running": {name: asdict(step) for name, step in running.items()},
        "target": {name: asdict(step) for name, step in target.items()},
        "streams": asdict(opened),
        "waiting": asdict(waiting),
        "first_audio_p95_s": asdict(first_audio_steps(outcomes, began_s)),
        "decisions": decisions(log, began_utc_s),
        "asked_after_s": {n: _since(target[n].first(args.nodes, step_s), step_s) for n in stages},
        "ready_after_s": {n: _since(running[n].first(args.nodes, step_s), step_s) for n in stages},
        "back_after_s": {n: _since(target[n].settled(1), after_s) for n in stages},
        "apart_s": apart_s(target, stages, end_s),
        "nodes": nodes,
    }


def sets_of(server: Server) -> list[list[str]]:
    """What runs on each node but the head, by the kinds of its processes."""
    assert server.nodes is not None
    kinds = {process.pid: process.kind for process in server.processes()}
    kept = [name for names in PROCESSES.values() for name in names]
    return [
        sorted(kinds[pid] for pid in descendants(raylet) if kinds.get(pid) in kept)
        for raylet in server.nodes.workers
    ]


def _since(at_s: float | None, begin_s: float) -> float | None:
    return None if at_s is None else at_s - begin_s


def _controller_logs(server: Server) -> list[Path]:
    return [path for path in server.logs() if path.name.startswith("controller_")]


def main(arguments: Sequence[str]) -> int:
    args = completed(parse(arguments))
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
    try:
        with (
            ready_server(args, config, args.checkpoint, rooms(args)) as (server, facts["ready_s"]),
            Steering(server) as steering,
        ):
            result = run_loop(lambda: stepped(args, server, steering))
    except ServerFailed:
        return 2
    result = files.to_json({"facts": facts, **result})
    files.write_json(args.out / "trace.json", result)
    say("\n" + report.compose(args.out, result))
    return int(bool(report.faults(result)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
