"""`python -m load_tests.crowd`: one measured listener beside many that read slowly or hang up.

The listener is measured alone, beside the crowd, and alone again. Exit status 1: it noticed the
crowd, one of the crowd got an error, or the server's memory kept growing.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from load_tests.crowd.clients import FORMATS, Crowd
from load_tests.crowd.memory import Cpu, MemoryLog, growth_mib, tree
from load_tests.crowd.verdict import Measured, markdown, problems
from load_tests.loops.client import SpeechClient
from load_tests.loops.metrics import summarize
from load_tests.loops.options import add_workload_options, client_of, workload_of
from load_tests.loops.runner import ClosedLoop, run_closed, run_loop
from load_tests.loops.workload import Workload
from load_tests.reports import circumstances, files
from load_tests.servers.child import say
from load_tests.servers.fake import fake_server, free_port
from load_tests.servers.server import serving
from load_tests.servers.settings import CONFIGS, configured

_ENDLESS: Final = 1_000_000
_READY_S: Final = 300.0
_WARM_UP_S: Final = 5.0
# Of one listener, who is never in want of a place.
_STREAMS: Final = 2

Find = Callable[[], Iterable[int]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.crowd", description=__doc__)
    parser.add_argument(
        "--server",
        choices=("fakes", *CONFIGS),
        default="fakes",
        help="to start: fakes = the HTTP application around stages that only wait, on no Ray",
    )
    parser.add_argument("--url", help="a server that is running, instead")
    parser.add_argument("--pid", type=int, help="its process, for its memory and its children's")
    parser.add_argument("--port", type=int, help="of the server that is started; default: any")
    parser.add_argument("--crowd", type=int, default=50, help="clients of each kind")
    parser.add_argument("--alone-s", type=float, default=15.0, help="before, and again after")
    parser.add_argument("--crowd-s", type=float, default=60.0, help="beside the crowd")
    parser.add_argument(
        "--slack-ms", type=float, default=100.0, help="by how much p95 of first audio may rise"
    )
    parser.add_argument(
        "--growth", type=float, default=0.1, help="share by which memory may still grow"
    )
    parser.add_argument("--out", type=Path, default=Path("crowd-report"), help="folder")
    add_workload_options(parser)
    return parser.parse_args(arguments)


async def watch(args: argparse.Namespace, url: str, find: Find) -> tuple[dict[str, Any], list[str]]:
    """Everything that is measured of the server at `url`, and what is wrong with it."""
    workload = workload_of(args)
    log = MemoryLog(find)
    crowd = Crowd(url, workload, args.crowd, args.seed)
    looking = asyncio.create_task(log.run())
    try:
        async with client_of(args, url) as client:
            # Each format once, so that what is loaded once is not taken for growth.
            await Crowd(url, workload, len(FORMATS)).run(min(_WARM_UP_S, args.crowd_s))
            alone = await _measured(client, workload, args.alone_s)
            before = Cpu.now(find())
            beside, _ = await asyncio.gather(
                _measured(client, workload, args.crowd_s), crowd.run(args.crowd_s)
            )
            end = Cpu.now(find())
            after = await _measured(client, workload, args.alone_s)
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
    readings = log.between(before.at_s, end.at_s)
    measured = Measured(
        alone,
        beside,
        after,
        dict(crowd.fates),
        crowd.first_failure,
        readings,
        growth_mib(readings),
        *end.since(before),
    )
    facts = {**circumstances.environment(args.commit), "url": url, "workload": asdict(workload)}
    found = problems(measured, args.slack_ms / 1000, args.growth)
    text = markdown(measured, facts, found)
    say(text)
    files.write_text(args.out / "report.md", text)
    return {"facts": facts, **measured.as_json(), "problems": found}, found


async def _measured(client: SpeechClient, workload: Workload, seconds: float) -> Any:
    plan = ClosedLoop(_STREAMS, _ENDLESS, warm_up=1, max_s=seconds)
    return summarize(await run_closed(client, workload, plan))


@contextmanager
def started(args: argparse.Namespace) -> Iterator[tuple[str, Find]]:
    """The server to put under load, and how its processes are found."""
    port = args.port or free_port()
    if args.url:
        yield args.url, lambda: tree(args.pid) if args.pid else ()
    elif args.server == "fakes":
        with fake_server(port) as process:
            yield f"http://127.0.0.1:{port}", lambda: tree(process.pid)
    else:
        with serving(configured(args.server, [], None, None), None, port, {}) as server:
            server.wait_until_ready(_READY_S)
            yield server.url, lambda: [process.pid for process in server.processes()]


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    with started(args) as (url, find):
        result, found = run_loop(lambda: watch(args, url, find))
    files.write_json(args.out / "report.json", result)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
