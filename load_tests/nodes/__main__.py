"""`python -m load_tests.nodes`: a server over several nodes that are lost under load.

Starts a cluster of several raylets on this machine, learns each request's audio undisturbed, and
then, under steady load, loses nodes that hold no client's connection, the GCS and Serve's
controller. Every stream is compared. Exit status 1: one was lost, broken or unequal, or the server
did not become whole again.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from load_tests.chaos.__main__ import save_to
from load_tests.chaos.loads import ended
from load_tests.chaos.outcomes import Turn
from load_tests.chaos.record import Record
from load_tests.chaos.settings import driver_of
from load_tests.chaos.watch import Watch
from load_tests.loops.client import SpeechClient
from load_tests.loops.runner import run_loop
from load_tests.nodes.blows import BLOWS, Blows
from load_tests.nodes.settings import (
    add_server_options,
    completed,
    default_out,
    rooms,
    spread_config,
)
from load_tests.reports import chaos_report, circumstances
from load_tests.servers.child import say
from load_tests.servers.ready import ready_server
from load_tests.servers.server import Server, ServerFailed


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.nodes", description=__doc__)
    add_server_options(parser)
    parser.add_argument("--replicas", type=int, default=2, help="of each stage")
    parser.add_argument("--streams", type=int, default=4, help="in flight")
    parser.add_argument(
        "--lose", nargs="+", choices=BLOWS, default=["node", "raylet", "node", "gcs", "controller"]
    )
    parser.add_argument("--pause", type=float, default=5.0, help="s before each")
    parser.add_argument("--out", type=Path, default=default_out("nodes"))
    return parser.parse_args(arguments)


async def watched(args: argparse.Namespace, server: Server, save: Any) -> Record:
    """Lose what `args.lose` names, one after the other, under steady load."""
    record = Record(began_s=time.perf_counter())
    driver = driver_of(args, server.url)

    def done(turn: Turn) -> None:
        record.turns.append(turn)
        say(chaos_report.turn_line(turn))
        save(record)

    async with SpeechClient(server.url, driver.shape) as health:
        record.watch = Watch(server.processes, lambda: health.get_json("/health"))
        watching = asyncio.create_task(record.watch.run())
        blows = Blows(server, record.watch, args.pause)
        record.strikes = blows.strikes
        try:
            if not args.no_compare:
                done(await driver.learn())
            turn = Turn("losses", time.perf_counter())
            dealing = asyncio.create_task(blows.run(args.lose))
            while not dealing.done():
                await driver.steady(turn, time.perf_counter() + 2.0)
            await dealing
            ended(turn)
            done(turn)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
    save(record)
    return record


def main(arguments: Sequence[str]) -> int:
    args = completed(parse(arguments))
    config = spread_config(args, args.replicas, args.replicas)
    facts: dict[str, Any] = {**circumstances.environment(args.commit), "config": config}
    try:
        with ready_server(args, config, args.checkpoint, rooms(args)) as (server, facts["ready_s"]):
            record = run_loop(lambda: watched(args, server, save_to(args.out, facts)))
    except ServerFailed:
        return 2
    say("\n" + (args.out / "report.md").read_text(encoding="utf-8"))
    unhealed = any(strike.healed_s is None for strike in record.strikes)
    return int(record.is_bad or unhealed or len(record.strikes) < len(args.lose))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
