"""Several checkpoints in one server, and each in a server of its own.

    python -m load_tests.several --out several --profile balanced --streams 1 16

By default 0.6B Base, 1.7B CustomVoice and 1.7B VoiceDesign with random weights, in `fused`, on
whatever GPUs there are. For each: first audio and throughput alone, with the others idle beside it,
and with all of them at work; bursts, the first of all among them; memory on the GPUs; what the
voice of a recording takes. One server after the other; what has been measured of each is in `--out`
after every load, and is not measured again when the server's last one is there.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from load_tests.loops.client import AudioShape, SpeechClient
from load_tests.loops.level import Level
from load_tests.loops.runner import BurstLoop, ClosedLoop, run_burst, run_closed, run_loop
from load_tests.reports import circumstances, files
from load_tests.servers.child import say, write_checkpoint
from load_tests.servers.ready import ready_server
from load_tests.servers.server import (
    MemoryWatch,
    Server,
    ServerFailed,
    cache_environment,
    not_ready,
)
from load_tests.several import clips
from load_tests.several.report import markdown
from load_tests.several.settings import TOGETHER, Model, config_of, parse

# More than any loop sends: a level ends by its time.
_REQUESTS: Final = 100_000
_BURSTS: Final = 3
_PAUSE_S: Final = 1.0

# Writes down what there is so far.
Keep = Callable[["Measured"], None]


@dataclass(slots=True)
class Row:
    """One model under one load; of bursts, `streams` is their size.

    others: what those beside it did: none, idle or busy.
    """

    model: str
    others: str
    streams: int
    level: Level

    def as_json(self) -> dict[str, Any]:
        figures = self.level.as_json(requests=False)
        return {"model": self.model, "others": self.others, "streams": self.streams, **figures}


@dataclass(slots=True)
class Measured:
    """A server.

    memory_mib: in use on each GPU, by when.
    is_whole: all was measured that there was to measure.
    """

    models: list[str]
    is_whole: bool = False
    ready_s: float | None = None
    memory_mib: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    rows: list[Row] = field(default_factory=list[Row])
    voices: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        return {
            "models": self.models,
            "is_whole": self.is_whole,
            "ready_s": self.ready_s,
            "memory_mib": self.memory_mib,
            "rows": [row.as_json() for row in self.rows],
            "voices": self.voices,
            "notes": self.notes,
        }


def measure(args: Any, name: str, keep: Keep) -> Measured:
    """Start a server, load it, stop it; `keep` is called after each load."""
    models = [model for model in args.models if name in (TOGETHER, model.name)]
    measured = Measured([model.name for model in models])
    measured.memory_mib["before"] = circumstances.gpu_memory_used_mib()
    config = config_of(args, models, args.out / "library")
    try:
        with ready_server(args, config) as (server, _):
            measured.ready_s = wait_for_all(server, models, args.ready_timeout)
            time.sleep(args.settle)
            measured.memory_mib["idle"] = circumstances.gpu_memory_used_mib()
            with MemoryWatch() as memory:
                try:
                    run_loop(lambda: load(args, server.url, models, measured, keep))
                    measured.is_whole = True
                except clips.Failed as failed:
                    measured.notes.append(str(failed))
                finally:
                    measured.memory_mib["peak"] = memory.peak_mib
    except ServerFailed as failed:
        measured.notes.append(str(failed))
    for row in measured.rows:
        if row.level.summary.failures:
            measured.notes.append(
                f"{row.model}, {row.streams} streams, others {row.others}:"
                f" {row.level.summary.failures} failed, {row.level.summary.first_detail}"
            )
    return measured


def wait_for_all(server: Server, models: Sequence[Model], timeout_s: float) -> float:
    """Seconds from the start until every model was ready.

    Raises:
        ServerFailed: they are not, or the server is gone.
    """
    while True:
        reasons = [not_ready(f"{server.url}/ready?model={model.name}") for model in models]
        elapsed_s = time.monotonic() - server.started_s
        if not any(reasons):
            say(f"all ready after {elapsed_s:.1f} s")
            return elapsed_s
        if elapsed_s > timeout_s or server.process.poll() is not None:
            raise ServerFailed(f"not all ready after {elapsed_s:.0f} s: {reasons}")
        time.sleep(0.2)


async def load(
    args: Any, url: str, models: Sequence[Model], measured: Measured, keep: Keep
) -> None:
    """
    Raises:
        clips.Failed: the voice that others speak with cannot be had.
    """
    others = "idle" if len(models) > 1 else "none"
    async with SpeechClient(url, AudioShape()) as client:

        async def row(model: Model, plan: ClosedLoop | BurstLoop, others: str) -> None:
            if isinstance(plan, BurstLoop):
                run, streams = await run_burst(client, model.workload(args), plan), plan.size
            else:
                run, streams = await run_closed(client, model.workload(args), plan), plan.streams
                run.stopped = ""  # by its time, as it should
            measured.rows.append(Row(model.name, others, streams, Level.of(run)))
            keep(measured)

        async def cold(model: Model) -> None:
            if args.burst:
                await row(model, BurstLoop(args.burst, 1, cold=True), others)

        for model in models:
            if model.task != "base":
                await cold(model)
        for model in models:
            if model.task == "base":
                measured.voices = await voices(args, url, model, cold, measured)
                keep(measured)
        for model in models:
            for streams in args.streams:
                await row(model, _closed(args, streams), others)
            if args.burst:
                await row(model, BurstLoop(args.burst, _BURSTS, _PAUSE_S), others)
        if len(models) > 1:
            for streams in args.streams:
                async with asyncio.TaskGroup() as group:
                    for model in models:
                        group.create_task(row(model, _closed(args, streams), "busy"))


async def voices(
    args: Any,
    url: str,
    model: Model,
    cold: Callable[[Model], Awaitable[None]],
    measured: Measured,
) -> dict[str, Any]:
    """What those of recordings take, and before them the first burst: it needs a voice.

    Raises:
        clips.Failed: a request was refused.
    """
    found = await clips.keep_voice(url, model.name)
    measured.memory_mib["with encoder"] = circumstances.gpu_memory_used_mib()
    await cold(model)
    await clips.measure(found, url, model.name, args.clip_s, args.clips, args.seed)
    measured.memory_mib["after clips"] = circumstances.gpu_memory_used_mib()
    return asdict(found)


def _closed(args: Any, streams: int) -> ClosedLoop:
    return ClosedLoop(streams, _REQUESTS, max_s=args.level_s)


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    began_s = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    facts = circumstances.environment(args.commit)
    args.gpus = len(facts["gpus"])
    if args.caches:
        caches = cache_environment(args.caches)
        args.env = [*(f"{key}={value}" for key, value in caches.items()), *args.env]
    for model in args.models:
        if not (folder := args.checkpoints / model.folder).exists():
            write_checkpoint(folder, model.size, "cuda" if args.gpus else "cpu", model.task)
    longest_s = 0.0
    for name in args.servers:
        file = _file(args, name)
        now_s = time.perf_counter()
        if _is_whole(file) and not args.again:
            continue
        if args.budget_s and now_s + longest_s > began_s + args.budget_s:
            say(f"{name}: no time left")
            continue
        say(f"{name}:")

        def keep(measured: Measured, file: Path = file) -> None:
            if measured.rows:
                files.write_json(file, {"facts": facts, **measured.as_json()})
                _write_report(args)

        measured = measure(args, name, keep)
        keep(measured)
        for note in measured.notes:
            say(f"- {note}")
        longest_s = max(longest_s, time.perf_counter() - now_s)
    found, report = _write_report(args)
    say("\n" + report)
    wanted = [found.get(name) for name in args.servers]
    return int(any(server is None or server["notes"] for server in wanted))


def _write_report(args: Any) -> tuple[dict[str, Any], str]:
    """What the servers gave so far, by their names, and the report of it, which is written."""
    names = [TOGETHER, *(model.name for model in args.models)]
    found = {
        name: json.loads(_file(args, name).read_text(encoding="utf-8"))
        for name in names
        if _file(args, name).exists()
    }
    report = markdown(found)
    files.write_text(args.out / "report.md", report)
    return found, report


def _is_whole(file: Path) -> bool:
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["is_whole"]


def _file(args: Any, name: str) -> Path:
    return args.out / f"{name}.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
