"""Several checkpoints in one server, and each in a server of its own.

    python -m load_tests.several --out several --profile balanced --streams 1 16

By default 0.6B Base, 1.7B CustomVoice and 1.7B VoiceDesign with random weights, in `fused`, on
whatever GPUs there are. For each: first audio and throughput alone, with the others idle beside it,
and with all of them at work; memory on the GPUs; what the voice of a recording takes. One server
after the other; what has been measured is in `--out` and is not measured again.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from load_tests.loops.client import AudioShape, SpeechClient
from load_tests.loops.level import Level
from load_tests.loops.runner import ClosedLoop, run_closed, run_loop
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


@dataclass(slots=True)
class Row:
    """One model under one load. others: what those beside it did: none, idle or busy."""

    model: str
    others: str
    streams: int
    level: Level

    def as_json(self) -> dict[str, Any]:
        figures = self.level.as_json(requests=False)
        return {"model": self.model, "others": self.others, "streams": self.streams, **figures}


@dataclass(slots=True)
class Measured:
    """A server. memory_mib: in use on each GPU, by when."""

    models: list[str]
    ready_s: float | None = None
    memory_mib: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    rows: list[Row] = field(default_factory=list[Row])
    voices: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        return {
            "models": self.models,
            "ready_s": self.ready_s,
            "memory_mib": self.memory_mib,
            "rows": [row.as_json() for row in self.rows],
            "voices": self.voices,
            "notes": self.notes,
        }


def measure(args: Any, name: str) -> Measured:
    """Start a server, load it, stop it."""
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
                    run_loop(lambda: load(args, server.url, models, measured))
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


async def load(args: Any, url: str, models: Sequence[Model], measured: Measured) -> None:
    for model in models:
        if model.task == "base":
            found = await clips.keep_voice(url, model.name)
            measured.memory_mib["with encoder"] = circumstances.gpu_memory_used_mib()
            await clips.measure(found, url, model.name, args.clip_s, args.clips, args.seed)
            measured.voices = asdict(found)
            measured.memory_mib["after clips"] = circumstances.gpu_memory_used_mib()
    async with SpeechClient(url, AudioShape()) as client:

        async def row(model: Model, streams: int, others: str) -> None:
            plan = ClosedLoop(streams, _REQUESTS, max_s=args.level_s)
            run = await run_closed(client, model.workload(args), plan)
            run.stopped = ""  # by its time, as it should
            measured.rows.append(Row(model.name, others, streams, Level.of(run)))

        others = "idle" if len(models) > 1 else "none"
        for model in models:
            for streams in args.streams:
                await row(model, streams, others)
        if len(models) > 1:
            for streams in args.streams:
                async with asyncio.TaskGroup() as group:
                    for model in models:
                        group.create_task(row(model, streams, "busy"))


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
        if file.exists() and not args.again:
            continue
        if args.budget_s and now_s + longest_s > began_s + args.budget_s:
            say(f"{name}: no time left")
            continue
        say(f"{name}:")
        measured = measure(args, name)
        if measured.rows:
            files.write_json(file, {"facts": facts, **measured.as_json()})
        for note in measured.notes:
            say(f"- {note}")
        longest_s = max(longest_s, time.perf_counter() - now_s)
    names = [TOGETHER, *(model.name for model in args.models)]
    found = {
        name: json.loads(_file(args, name).read_text(encoding="utf-8"))
        for name in names
        if _file(args, name).exists()
    }
    report = markdown(found)
    files.write_text(args.out / "report.md", report)
    say("\n" + report)
    wanted = [found.get(name) for name in args.servers]
    return int(any(server is None or server["notes"] for server in wanted))


def _file(args: Any, name: str) -> Path:
    return args.out / f"{name}.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
