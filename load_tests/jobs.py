"""The parts of a benchmark as commands, each a process of its own, and their results in a folder.

A process of its own, because one that has used a GPU keeps a part of its memory.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load_tests.reports import circumstances, files
from load_tests.servers.child import REPOSITORY, say, search_path

PARTS: Final = (
    "frame",
    "decoder",
    "predictor",
    "first-audio",
    "http",
    "throughput",
    "startup",
    "memory",
    "peers",
)
# Of the load under which the memory of the shipped settings is read.
_MEMORY_STREAMS: Final = 64
# From here on a closed loop is one for the throughput profile.
_MANY_STREAMS: Final = 64
# What a part may need to end by itself after it is asked to.
_GRACE_S: Final = 30.0
_TAIL_LINES: Final = 30
_PEERS: Final = (("ours", 1), ("faster", 1), ("faster", 12), ("reference", 1))


@dataclass(frozen=True, slots=True)
class Job:
    """One process.

    arguments: of `python`; a result made with other ones is not this job's.
    needs_s: with less time left it is not begun.
    size: of the checkpoint that it needs.
    resumes: it goes on from its own unfinished result, and keeps to `--budget-s`.
    prints: its result is the last line that it prints, not the file of `--out`.
    packages: a folder that it imports from besides the search path.
    """

    name: str
    arguments: tuple[str, ...]
    needs_s: float
    size: str | None = None
    resumes: bool = False
    prints: bool = False
    packages: Path | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a job has no whole result; `goes_on`: for want of time alone."""

    reason: str
    goes_on: bool = False


def plan(args: argparse.Namespace, parts: Sequence[str]) -> Iterator[Job]:
    """The jobs of `parts`, in the order of PARTS; `args` are those of load_tests.bench."""
    for part in PARTS:
        if part in parts:
            yield from _JOBS_OF[part](args)


def _stage(module: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"load_tests.stages.{module}", *arguments)


def _words(values: Sequence[object]) -> list[str]:
    return [str(value) for value in values]


def _frame(args: argparse.Namespace) -> Iterator[Job]:
    for size in args.sizes:
        where = ("--size", size, "--checkpoint", str(args.checkpoints / size))
        batches = ("--batches", *_words(args.batches))
        yield Job(f"frame-{size}", _stage("frame", *where, *batches), 150, size)


def _decoder(args: argparse.Namespace) -> Iterator[Job]:
    options = ("--dtypes", "bf16", "--streams", "1", "8", "16", "32", "64", "128")
    yield Job("decoder", _stage("speech_decoder", *options), 60)


def _predictor(args: argparse.Namespace) -> Iterator[Job]:
    for size in args.sizes:
        options = ("--size", size, "--plans", "default", "--batches", *_words(args.batches))
        yield Job(f"predictor-{size}", _stage("code_predictor", *options), 90)


def _first_audio(args: argparse.Namespace) -> Iterator[Job]:
    for size in args.sizes:
        where = ("--size", size, "--checkpoint", str(args.checkpoints / size))
        yield Job(f"first-audio-{size}", _stage("first_audio", *where), 80, size)


def _served(args: argparse.Namespace, part: str, needs_s: float, *options: str) -> Iterator[Job]:
    """One server per size and placement, measured by load_tests.serve_bench."""
    for size in args.sizes:
        for placement in args.placements:
            name = f"{part}-{placement}-{size}"
            # `startup` finds what `http` has compiled: the same settings, the second start.
            compiled = f"{'memory' if part == 'memory' else 'http'}-{placement}-{size}"
            arguments = [
                *("-m", "load_tests.serve_bench", "--placements", placement, "--size", size),
                *("--checkpoint", str(args.checkpoints / size)),
                *("--caches", str(args.checkpoints / "caches" / compiled)),
                *("--frames", args.frames, "--port", str(args.port)),
                *(() if args.settle is None else ("--settle", str(args.settle))),
                *(word for pair in args.override for word in ("--override", pair)),
                *(word for pair in args.env for word in ("--env", pair)),
                *options,
            ]
            yield Job(name, tuple(arguments), needs_s, size, resumes=part == "http")


def _http(args: argparse.Namespace) -> Iterator[Job]:
    options = ["--capacity", args.capacity, "--burst", *args.burst]
    options += ["--closed", *args.closed, "--open", *args.open]
    options += ["--seeds", *args.seeds, "--seed", args.seeds[0]]
    options += ["--duration", args.duration, "--warm-up", args.warm_up]
    yield from _served(args, "http", 130, *_words(options))


def _throughput(args: argparse.Namespace) -> Iterator[Job]:
    """`fused` with the profile made for many streams, under as many as it is for."""
    if "fused" not in args.placements:
        return
    one = argparse.Namespace(**{**vars(args), "placements": ["fused"]})
    options = ["--profile", "throughput", "--closed"]
    options += [streams for streams in args.closed if streams >= _MANY_STREAMS]
    yield from _served(one, "throughput", 100.0, *_words(options), "--open", "--burst")


def _startup(args: argparse.Namespace) -> Iterator[Job]:
    options = ("--capacity", str(args.capacity), "--closed", "--open", "--burst")
    yield from _served(args, "startup", 100.0, *options)


def _memory(args: argparse.Namespace) -> Iterator[Job]:
    options = ("--closed", str(_MEMORY_STREAMS), "--open", "--burst")
    yield from _served(args, "memory", 110.0, *options)


def _peers(args: argparse.Namespace) -> Iterator[Job]:
    if args.peers is None:
        return
    size = args.sizes[0]
    for peer, chunk in _PEERS:
        options = ("--peer", peer, "--chunk", str(chunk))
        where = ("--checkpoint", str(args.checkpoints / size))
        arguments = (
            str(REPOSITORY / "load_tests" / "peers" / "in_process.py"),
            "run",
            *options,
            *where,
        )
        name = f"peers-{peer}-{chunk}-{size}"
        yield Job(name, arguments, 120, size, prints=True, packages=args.peers)


_JOBS_OF: Final = {
    "frame": _frame,
    "decoder": _decoder,
    "predictor": _predictor,
    "first-audio": _first_audio,
    "http": _http,
    "throughput": _throughput,
    "startup": _startup,
    "memory": _memory,
    "peers": _peers,
}


@dataclass(frozen=True, slots=True)
class Store:
    """One JSON file per job, and the log of its last run."""

    folder: Path

    def path(self, job: Job) -> Path:
        return self.folder / f"{job.name}.json"

    def log(self, job: Job) -> Path:
        return self.folder / "logs" / f"{job.name}.log"

    def read(self, job: Job) -> dict[str, Any] | None:
        """What is there of `job`, complete or not; None where nothing is."""
        try:
            return json.loads(self.path(job).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def is_done(self, job: Job) -> bool:
        """Whether the stored result is a whole one, made with the same arguments."""
        found = self.read(job) or {}
        return bool(found.get("complete")) and found.get("arguments") == list(job.arguments)

    def forget(self, job: Job) -> None:
        self.path(job).unlink(missing_ok=True)

    def finish(self, job: Job, result: dict[str, Any], wall_s: float) -> bool:
        """Store `result` as that of `job`; whether it is complete."""
        complete = all(server["complete"] for server in result.get("servers", ()))
        entry = {"job": job.name, "arguments": list(job.arguments), "complete": complete}
        files.write_json(self.path(job), {**result, **entry, "wall_s": wall_s})
        return complete

    def all(self) -> dict[str, dict[str, Any]]:
        """Every stored result by the name of its job, unfinished ones too."""
        return {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(self.folder.glob("*.json"))
        }


def run(job: Job, store: Store, deadline_s: float, commit: str | None) -> Missing | None:
    """Run `job` and store its result; None if it is complete.

    `deadline_s` is of `time.monotonic`. Nothing of the process is left afterwards.
    """
    command = [sys.executable, *job.arguments]
    left_s = deadline_s - time.monotonic()
    if not job.prints:
        command += ["--out", str(store.path(job)), *(("--commit", commit) if commit else ())]
    if job.resumes:
        command += ["--resume", "--budget-s", f"{left_s - _GRACE_S:.0f}"]
    else:
        store.forget(job)
    packages = [str(job.packages.resolve())] if job.packages else []
    path = os.pathsep.join([search_path(), *packages])
    store.log(job).parent.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with store.log(job).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(left_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    wall_s = time.monotonic() - began_s
    printed = store.log(job).read_text(errors="replace").splitlines()
    result = _printed(printed, commit) if job.prints else store.read(job)
    if code is None:
        return Missing(f"out of time after {wall_s:.0f} s", goes_on=True)
    if result is None:
        say("\n".join(f"  {line[:300]}" for line in printed[-_TAIL_LINES:]))
        last = printed[-1][:300] if printed else "no output"
        return Missing(f"ended with {code} and no result: {last}")
    if not store.finish(job, result, wall_s):
        notes = [note for server in result["servers"] for note in server["notes"]]
        # A server that was never ready, or refused everything, has no level at all.
        has_levels = all(server["levels"] for server in result["servers"])
        return Missing(notes[-1] if notes else "unfinished", goes_on=has_levels)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process group to end, then kill what is left of it."""
    for sign, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue


def _printed(lines: Sequence[str], commit: str | None) -> dict[str, Any] | None:
    """The result on the last line that is a JSON object, with the circumstances."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return {"facts": circumstances.environment(commit), **json.loads(line)}
            except ValueError:
                return None
    return None
