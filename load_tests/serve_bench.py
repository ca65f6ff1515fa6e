"""Start the server, load it, stop it, for each placement and `--variant`.

    python -m load_tests.serve_bench --placements fused --variant deterministic=true

One command for a machine of its own, with or without a GPU and with or without an installation:
everything is started by `python -m` in this interpreter, so a PYTHONPATH is enough. Writes results
after every level, keeps to `--budget-s`, and ends every process that it started, also after Ctrl-C.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load_tests.loops.ladder import NoTime, climb
from load_tests.loops.level import Level
from load_tests.loops.options import (
    add_ladder_options,
    add_workload_options,
    client_of,
    ladders_of,
    workload_of,
)
from load_tests.loops.runner import BurstLoop, ClosedLoop, run_burst, run_closed, run_loop
from load_tests.reports import circumstances, files, plots, report
from load_tests.reports.load_points import load_points
from load_tests.servers.child import say, write_checkpoint
from load_tests.servers.late_kernels import late_kernels_of, late_text
from load_tests.servers.measured import Measured, Start, resume
from load_tests.servers.server import (
    STOP_S,
    MemoryWatch,
    ServerFailed,
    cache_environment,
    keep,
    serving,
    show,
)
from load_tests.servers.settings import CONFIGS, configured
from load_tests.servers.starts import replica_starts
from serve_app.config import PROFILES, AppConfig
from serve_app.launch.ports import is_free


def measure(
    args: argparse.Namespace,
    measured: Measured,
    checkpoint: Path,
    deadline_s: float,
    save: Callable[[], None],
) -> None:
    """Fill `measured` from a server of its own; `deadline_s` is of `time.perf_counter`."""
    start = Start(circumstances.utc(), memory_before_mib=circumstances.gpu_memory_used_mib())
    measured.starts.append(start)
    env = dict(pair.split("=", 1) for pair in args.env)
    if args.caches:
        env = {**cache_environment(args.caches), **env}
        start.caches_empty = not any(args.caches.glob("*/*"))
    with serving(measured.config, checkpoint, args.port, env) as server:
        try:
            left_s = deadline_s - time.perf_counter()
            start.ready_s = server.wait_until_ready(min(args.ready_timeout, left_s))
        except ServerFailed as error:
            measured.note(str(error))
            show(server)
        else:
            say(f"{measured.name}: ready {start.ready_s:.1f} s after the start")
            start.replicas = [each.text() for each in replica_starts(server)]
            start.memory_idle_mib = circumstances.gpu_memory_used_mib()
            with MemoryWatch() as memory:
                try:
                    run_loop(lambda: load(args, measured, server.url, deadline_s, save))
                finally:
                    start.memory_peak_mib = memory.peak_mib
                    if circumstances.gpus():
                        start.late_kernels = late_kernels_of(server)
                        say(f"{measured.name}: {late_text(start.late_kernels)}")
            if server.process.poll() is not None:
                measured.note("the server ended under the load")
            if measured.notes or any(level.summary.failures for level in measured.levels):
                show(server)
        finally:
            if args.keep_logs:
                keep(server, args.keep_logs / f"{measured.name}.log")


async def load(
    args: argparse.Namespace,
    measured: Measured,
    url: str,
    deadline_s: float,
    save: Callable[[], None],
) -> None:
    """Climb the ladders, keeping each level as soon as it is done.

    Before them, before any warm-up, comes the cold row: what the first users after ready get.
    """
    workload = workload_of(args)

    def add(level: Level) -> None:
        measured.levels.append(level)
        say(report.table_line(report.row(level)))
        for line in report.notes([level]):
            say(line)
        save()

    async with client_of(args, url) as client:
        measured.health = await client.get_json("/health")
        say("\n" + "\n".join(report.table_head()))
        first = BurstLoop(args.cold, times=1, cold=True)
        if args.cold and first not in measured.done():
            add(Level.of(await run_burst(client, workload, first)))
        # The first real request of each length pays for what only it finds cold.
        warm_up = await run_closed(client, workload, ClosedLoop(2, 4, warm_up=0))
        broken = [result for result in warm_up.results if not result.ok]
        if broken:
            measured.note(f"warm-up failed: {broken[0].detail}")
        if len(broken) == len(warm_up.results):
            return
        await asyncio.sleep(args.settle)
        ladders, skipped = ladders_of(args, deadline_s), False
        try:
            async with (
                asyncio.timeout(deadline_s - time.perf_counter()),
                aclosing(climb(client, workload, ladders, measured.done())) as steps,
            ):
                async for step in steps:
                    if isinstance(step, str):
                        measured.note(step)
                        skipped = skipped or isinstance(step, NoTime)
                        continue
                    skipped = skipped or bool(step.summary.stopped)
                    add(step)
            measured.complete = not skipped
        except TimeoutError:
            measured.note("out of time, the last level is lost")


def markdown(facts: Mapping[str, Any], all_measured: Sequence[Measured]) -> str:
    parts = [f"# Server under load\n\n`{facts['command']}`\n"]
    for measured in all_measured:
        starts = "\n".join(f"- {start.text()}" for start in measured.starts)
        parts.append(
            f"## {measured.name}\n\n{starts}\n\n"
            + report.markdown(measured.levels, {**facts, "health": measured.health})
            + "".join(f"- {line}\n" for line in measured.notes)
        )
    return "\n".join(parts)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.serve_bench", description=__doc__)
    parser.add_argument("--placements", nargs="+", choices=tuple(CONFIGS), default=["fused"])
    parser.add_argument("--size", choices=("tiny", "tiny-0b6", "0.6b", "1.7b"), default="1.7b")
    parser.add_argument(
        "--checkpoint", type=Path, help="serve this one; written first if it does not exist"
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="[PLACEMENT:]KEY=VALUE",
        help="e.g. talker.max_num_seqs=256, split:deployments.Talker.max_ongoing_requests=512",
    )
    parser.add_argument(
        "--variant",
        action="append",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="measure each placement once more with these overrides, e.g. deterministic=true",
    )
    parser.add_argument(
        "--profile", choices=(*PROFILES, "auto"), help="as PROFILE of the launcher, limits included"
    )
    parser.add_argument("--capacity", type=int, help="streams per replica: all limits at once")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--settle",
        type=float,
        default=12.0 if circumstances.gpus() else 0.0,
        help="s between ready and the first level, in which the server captures its large graphs",
    )
    parser.add_argument(
        "--cold", type=int, default=16, help="requests at once, the first after ready; 0: none"
    )
    parser.add_argument("--ready-timeout", type=float, default=300.0, help="s")
    parser.add_argument(
        "--caches", type=Path, help="folder for what compilers of the server keep between starts"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from --out: only the levels not there yet"
    )
    parser.add_argument("--budget-s", type=float, default=540.0, help="for everything")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--report", type=Path, help="markdown file")
    parser.add_argument("--keep-logs", type=Path, help="folder for the server's logs")
    add_workload_options(parser)
    add_ladder_options(parser)
    return parser.parse_args(arguments)


def measurements(args: argparse.Namespace) -> list[Measured]:
    """What is to be measured: each placement as it is asked for, then in each variant."""
    return [
        Measured(
            placement,
            configured(placement, [*args.override, *variant], args.capacity, args.profile),
            " ".join(variant),
        )
        for placement in args.placements
        for variant in [(), *args.variant]
    ]


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    end_s = time.perf_counter() + args.budget_s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not is_free("127.0.0.1", args.port):
        say(f"port {args.port} is in use; choose another: --port")
        return 2
    # Faults in the settings show now, not after the checkpoint is written.
    all_measured = measurements(args)
    for measured in all_measured:
        AppConfig.model_validate(measured.config["applications"][0].get("args", {}))
    facts = {**circumstances.environment(args.commit), "size": args.size, "budget_s": args.budget_s}
    facts["workload"] = files.to_json(asdict(workload_of(args)))
    if args.resume and args.out and args.out.exists():
        resume(all_measured, json.loads(args.out.read_text(encoding="utf-8")), facts)
    say(", ".join(f"{name} {facts[name]}" for name in ("gpus", "cpus", "versions", "commit")))

    def save() -> None:
        if args.out:
            servers = [m.as_json(requests=args.requests_in_json) for m in all_measured]
            files.write_json(args.out, {"facts": facts, "servers": servers})
        if args.report:
            files.write_text(args.report, markdown(facts, all_measured))

    with tempfile.TemporaryDirectory(prefix="ttsb-model-") as scratch:
        checkpoint = args.checkpoint or Path(scratch) / f"{args.size}-custom-voice"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, args.size, "cuda" if facts["gpus"] else "cpu")
        for number, measured in enumerate(all_measured):
            now_s = time.perf_counter()
            share_s = (end_s - now_s) / (len(all_measured) - number)
            try:
                measure(args, measured, checkpoint, now_s + share_s - STOP_S, save)
            finally:
                save()
    say("\n" + markdown(facts, all_measured))
    if args.plot:
        plots.loops(
            args.plot,
            {m.name: load_points(m.as_json(requests=False)["levels"]) for m in all_measured},
        )
    return int(not all(measured.levels or measured.complete for measured in all_measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
