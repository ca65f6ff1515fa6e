"""`python -m load_tests.chaos`: a server under every load while its processes are killed.

Starts a server of its own, asks for the first burst, learns each request's audio undisturbed, finds
what full load is, and then puts the loads on it in turn while signals fall. Everything that a
client saw is in one report. Exit status 1: something was lost, broken or not what it should be.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from load_tests.chaos import settings
from load_tests.chaos.changes import Operator
from load_tests.chaos.killer import Killer
from load_tests.chaos.listener import judge
from load_tests.chaos.loads import Driver, ended
from load_tests.chaos.outcomes import Turn, figures_of
from load_tests.chaos.record import Record, result_of
from load_tests.chaos.schedule import blows
from load_tests.chaos.watch import Watch
from load_tests.loops.client import SpeechClient
from load_tests.loops.runner import run_loop
from load_tests.reports import chaos_report, circumstances, files
from load_tests.servers.child import say, write_checkpoint
from load_tests.servers.processes import ServerProcess
from load_tests.servers.ready import ready_server
from load_tests.servers.server import ServerFailed
from serve_app.launch.overrides import with_model

_SETTLE_S: Final = 5.0
_LOOK_S: Final = 0.5
Save = Callable[[Record], None]


async def watched(
    args: Any,
    url: str,
    find: Callable[[], Sequence[ServerProcess]],
    save: Save,
    operator: Operator | None = None,
) -> Record:
    """Put the server at `url` through everything that `args` ask for."""
    record = Record(began_s=time.perf_counter())
    driver = settings.driver_of(
        args, url, size=args.burst, pause_s=args.pause, clients=args.clients
    )

    def done(turn: Turn) -> Turn:
        record.turns.append(turn)
        say(chaos_report.turn_line(turn))
        save(record)
        return turn

    async with SpeechClient(url, driver.shape) as health:
        watch = Watch(find, lambda: health.get_json("/health"), lambda: health.get_text("/metrics"))
        record.watch = watch
        watching = asyncio.create_task(watch.run())
        try:
            cold = done(await driver.cold())
            if not args.no_compare:
                done(await driver.learn())
                for outcome in cold.outcomes:
                    judge(outcome, driver.references)
            if not await healthy(lambda: health.get_json("/health"), args.ready_timeout):
                say("not all replicas are there: what follows counts from those that are")
            full = done(await _full(driver, args))
            figures = figures_of(full.phase, full.outcomes, full.span_s)
            driver.capacity_hz = figures.complete_per_s or None
            record.full_p95_s = full_load_p95_s(full, args.streams)
            driver.recovered_at_s = chaos_report.SLOWER * record.full_p95_s

            if operator is not None:
                for number, name in enumerate(args.changes):
                    change = operator.make(name, number, record.changes)
                    done(await driver.during(name, change, _SETTLE_S))
            await _disturb(args, driver, record, find, watch, done)
            done(await driver.run("steady", args.calm_s))
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
    save(record)
    return record


async def healthy(ask: Callable[[], Awaitable[Mapping[str, Any] | None]], within_s: float) -> bool:
    """Wait until a server has all its replicas: it is ready as soon as one of each is there, and of
    those that still start none is missed when another one is killed.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while (await ask() or {}).get("status") != "healthy":
                await asyncio.sleep(_LOOK_S)
            return True
    return False


async def _full(driver: Driver, args: Any) -> Turn:
    """Full load, undisturbed: what the others are measured against."""
    turn = Turn("full load", time.perf_counter())
    await driver.steady(turn, turn.begin_s + args.calm_s)
    return ended(turn)


def full_load_p95_s(turn: Turn, streams: int) -> float:
    """First audio at full load, s: without the first `streams` requests, which are a burst."""
    outcomes = sorted(turn.outcomes, key=lambda outcome: outcome.result.sent_at_s)
    return figures_of(turn.phase, outcomes[streams:] or outcomes, turn.span_s).first_audio_p95_s


async def _disturb(
    args: Any,
    driver: Driver,
    record: Record,
    find: Callable[[], Sequence[ServerProcess]],
    watch: Watch,
    done: Callable[[Turn], Turn],
) -> None:
    """Loads in turn until time is up, or each has had its turn and all blows have fallen."""
    count = args.kills
    if args.soak:
        count = max(count, int(args.minutes))
    planned = blows(args.kinds, count, args.stops, args.every, args.seed)
    killer = Killer(planned, find, watch, overlap=args.overlap)
    record.strikes = killer.strikes
    killing = asyncio.create_task(killer.run())
    began_s = time.perf_counter()
    end_s = began_s + 60 * args.minutes if args.minutes else None
    try:
        for number, (load, factor) in enumerate(itertools.cycle(_plan(args))):
            through = number >= len(_plan(args))
            if end_s is None:
                if through and killing.done():
                    break
            elif time.perf_counter() >= end_s:
                break
            seconds = args.phase_s
            if end_s is not None:
                seconds = max(1.0, min(seconds, end_s - time.perf_counter()))
            turn = done(await driver.run(load, seconds, factor))
            if load == "overload":
                record.recoveries_s.append((factor, turn.recovered_s))
    finally:
        if end_s is not None:
            killing.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await killing
        finally:
            killer.release()
    await asyncio.sleep(_SETTLE_S)


def _plan(args: Any) -> list[tuple[str, float]]:
    if args.soak:
        return [("soak", args.share)]
    return [
        (load, factor)
        for load in args.loads
        for factor in (args.overload if load == "overload" else (0.0,))
    ]


def main(arguments: Sequence[str]) -> int:
    args = settings.parse(arguments)
    config = settings.server_config(args)
    facts: dict[str, Any] = {
        **circumstances.environment(args.commit),
        "options": files.to_json({name: _plain(value) for name, value in vars(args).items()}),
        "config": config,
    }
    if args.checkpoint and args.size and not args.checkpoint.exists():
        write_checkpoint(args.checkpoint, args.size, "cuda" if facts["gpus"] else "cpu")
    model = args.checkpoint and str(args.checkpoint.resolve())
    try:
        with ready_server(args, config, args.checkpoint) as (server, facts["ready_s"]):
            operator = Operator(
                with_model(config, model, None),
                server,
                args.placement,
                args.replicas,
            )
            save = save_to(args.out, facts)
            record = run_loop(lambda: watched(args, server.url, server.processes, save, operator))
    except ServerFailed:
        return 2
    say("\n" + (args.out / "report.md").read_text(encoding="utf-8"))
    return int(record.is_bad)


def save_to(folder: Path, facts: Mapping[str, Any]) -> Save:
    """What writes the report of a run so far into `folder`."""

    def save(record: Record) -> None:
        result = {"facts": facts, **result_of(record)}
        files.write_json(folder / "report.json", result)
        chaos_report.compose(folder, files.to_json(result))

    return save


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
