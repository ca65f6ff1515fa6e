"""Start the server, load it, stop it, for each placement: `python -m load_tests.serve_bench`.

One command for a machine of its own, with or without a GPU and with or without an installation:
everything is started by `python -m` in this interpreter, so a PYTHONPATH is enough. Writes results
after every level, keeps to `--budget-s`, and ends every process that it started, also after Ctrl-C.
"""

import argparse
import asyncio
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from load_tests import report
from load_tests.__main__ import (
    add_ladder_options,
    add_workload_options,
    client_of,
    climb,
    ladders_of,
    workload_of,
)
from load_tests.report import Level
from load_tests.runner import ClosedLoop, run_closed, run_loop
from serve_app.__main__ import is_free
from serve_app.config import AppConfig

REPOSITORY: Final = Path(__file__).parents[1]
CONFIGS: Final = {"split": "configs/serve.yaml", "fused": "configs/serve.fused.yaml"}
STAGES: Final = {"split": ("SpeechDecoder", "Talker"), "fused": ("Fused",)}
# In the environment of everything that a server starts: how its processes are found again, when
# their parents are gone and they call themselves something else.
_MARK: Final = "TTS_BENCH_RUN"
_STOP_S: Final = 20.0
_LOG_LINES: Final = 40
# What the controller of Serve logs of an application or deployment that does not start.
_GIVEN_UP: Final = ("are UNHEALTHY", "DEPLOY_FAILED", "failed with exception:")


@dataclass(slots=True)
class Measured:
    """What one placement gave; memory in MiB per GPU."""

    placement: str
    config: dict[str, Any]
    ready_s: float | None = None
    health: Mapping[str, Any] | None = None
    memory_before_mib: list[int] = field(default_factory=list)
    memory_idle_mib: list[int] = field(default_factory=list)
    memory_peak_mib: list[int] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self, *, requests: bool) -> dict[str, Any]:
        data = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("levels", "health")
        }
        levels = [level.as_json(requests=requests) for level in self.levels]
        return {**data, "health": self.health, "levels": levels}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was started, perhaps not ready yet."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    started_s: float

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def wait_until_ready(self, timeout_s: float) -> float:
        """Return the seconds from start to ready.

        Raises:
            ServerFailed: the server ended, or is not ready in time.
        """
        told = ""
        while True:
            reason = not_ready(f"{self.url}/ready")
            elapsed_s = time.monotonic() - self.started_s
            if reason is None:
                return elapsed_s
            if reason != told:
                say(f"{elapsed_s:6.1f} s, not ready: {reason}")
                told = reason
            if self.process.poll() is not None:
                raise ServerFailed(f"the server ended with {self.process.returncode}")
            if self._has_given_up():
                raise ServerFailed(f"the application does not start, seen after {elapsed_s:.0f} s")
            if elapsed_s > timeout_s:
                raise ServerFailed(f"not ready after {timeout_s:.0f} s")
            time.sleep(0.2)

    def _has_given_up(self) -> bool:
        """Whether Serve has found that it fails: on a lent machine, waiting on costs time."""
        return any(
            word in path.read_text(errors="replace")
            for path in self.logs()
            if path.name.startswith("controller_")
            for word in _GIVEN_UP
        )

    def logs(self) -> Iterator[Path]:
        """Its own log, then those of the replicas, the controller and the workers."""
        yield self.log
        session = self.folder / "ray" / "session_latest" / "logs"
        yield from sorted(session.glob("serve/*.log"))
        # A log may go while this looks: Ray removes those of workers that ended.
        yield from sorted(path for path in session.glob("worker-*") if _size(path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class ServerFailed(Exception):
    """The server did not come up."""


def not_ready(url: str) -> str | None:
    """What `/ready` gives as the reason; None when it is ready."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return None
    except urllib.error.HTTPError as error:
        return error.read(300).decode(errors="replace").strip() or f"status {error.code}"
    except (OSError, http.client.HTTPException):
        return "no answer"


@contextmanager
def serving(
    config: Mapping[str, Any], checkpoint: Path | None, port: int, env: Mapping[str, str]
) -> Generator[Server, None, None]:
    """Run `python -m serve_app` in a session of its own; nothing of it is left afterwards."""
    # Ray puts sockets below it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ttsb-", dir="/tmp"))
    mark = uuid.uuid4().hex
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": search_path(),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        _MARK: mark,
        **env,
    }
    for name in ("RAY_ADDRESS", "TTS_MODEL", "TTS_REVISION"):
        environment.pop(name, None)
    if checkpoint is not None:
        environment["TTS_MODEL"] = str(checkpoint.resolve())
    started_s = time.monotonic()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app", str(file)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(process, f"http://127.0.0.1:{port}", folder, started_s)
    finally:
        stop(process, mark)
        shutil.rmtree(folder, ignore_errors=True)


def search_path() -> str:
    """PYTHONPATH for the server: the one of this process, with the repository first.

    Absolute, because Ray starts its processes in folders of their own.
    """
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join([str(REPOSITORY), *(str(Path(path).resolve()) for path in given)])


def stop(process: subprocess.Popen[bytes], mark: str) -> None:
    """Interrupt the launcher, as Ctrl-C does, then kill whatever carries `mark`.

    Ray's daemons leave the process group and outlive their parents, and `ray stop` would end
    clusters of others too.
    """
    began_s = time.monotonic()
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            say(f"it did not end within {_STOP_S:.0f} s")
    # Once more: what is killed first may still have been starting others.
    for _ in range(3):
        left = marked(mark)
        if not left:
            break
        say(f"killing {len(left)} processes that are left")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(1.0)
    process.wait(10)
    say(f"server stopped in {time.monotonic() - began_s:.1f} s")


def marked(mark: str) -> list[int]:
    """Processes, other than zombies, whose environment carries `mark`; Linux only."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or of another user
            continue
    return found


# Configuration


def configured(placement: str, overrides: Sequence[str], capacity: int | None) -> dict[str, Any]:
    """The placement's config file with `capacity` and then `overrides` applied."""
    config = yaml.safe_load((REPOSITORY / CONFIGS[placement]).read_text(encoding="utf-8"))
    for setting in [*capacity_overrides(placement, capacity), *overrides]:
        where, colon, rest = setting.partition(":")
        if colon and where in CONFIGS:
            if where != placement:
                continue
            setting = rest
        override(config, setting)
    return config


def capacity_overrides(placement: str, capacity: int | None) -> Iterator[str]:
    """What has to change together for one replica of each stage to carry `capacity` streams."""
    if capacity is None:
        return
    yield f"talker.max_num_seqs={capacity}"
    yield f"speech_decoder.max_streams={capacity}"
    for name in (*STAGES[placement], "Ingress"):
        yield f"deployments.{name}.max_ongoing_requests={2 * capacity}"


def override(config: dict[str, Any], setting: str) -> None:
    """Set `key=value` (YAML) in the application's args, or in `deployments.NAME.key=value`.

    Raises:
        ValueError: not of this form, or no such deployment.
    """
    key, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"not KEY=VALUE: {setting!r}")
    application = config["applications"][0]
    path = key.split(".")
    target = application.setdefault("args", {})
    if path[0] == "deployments" and len(path) > 2:
        named = {deployment["name"]: deployment for deployment in application["deployments"]}
        if path[1] not in named:
            raise ValueError(f"no deployment {path[1]!r}; there are {', '.join(named)}")
        target, path = named[path[1]], path[2:]
    for part in path[:-1]:
        target = target.setdefault(part, {})
    target[path[-1]] = yaml.safe_load(text)


def write_checkpoint(folder: Path, size: str, device: str) -> None:
    """Write a random checkpoint that never ends by itself, in a process of its own.

    Who has once used the GPU keeps a part of its memory, and this process lives on.
    """
    began = time.monotonic()
    options = {"--size": size, "--variant": "custom_voice", "--eos": "unreachable"}
    arguments = [word for option in {**options, "--device": device}.items() for word in option]
    subprocess.run(
        [sys.executable, "-m", "serve_app.models.random_checkpoint", str(folder), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": search_path()},
        check=True,
    )
    say(f"wrote {folder}, size {size}, in {time.monotonic() - began:.1f} s")


# Measurement


class MemoryWatch:
    """Samples the memory in use on each GPU, from a thread, and keeps the most."""

    def __init__(self, period_s: float = 1.0) -> None:
        self._period_s = period_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mib: list[int] = []

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while used := report.gpu_memory_used_mib():
            before = self.peak_mib or used
            self.peak_mib = [max(pair) for pair in zip(before, used, strict=True)]
            if self._ended.wait(self._period_s):
                return


def measure(
    args: argparse.Namespace, measured: Measured, checkpoint: Path | None, deadline_s: float, save
) -> None:
    """Fill `measured` from a server of its own; `deadline_s` is of `time.perf_counter`."""
    placement = measured.placement
    measured.memory_before_mib = report.gpu_memory_used_mib()
    env = dict(pair.split("=", 1) for pair in args.env)
    with serving(measured.config, checkpoint, args.port, env) as server:
        try:
            left_s = deadline_s - time.perf_counter()
            measured.ready_s = server.wait_until_ready(min(args.ready_timeout, left_s))
        except ServerFailed as error:
            measured.notes.append(f"{placement}: {error}")
            say(f"{placement}: {error}")
            show(server)
        else:
            say(f"{placement}: ready {measured.ready_s:.1f} s after the start")
            measured.memory_idle_mib = report.gpu_memory_used_mib()
            with MemoryWatch() as memory:
                try:
                    run_loop(lambda: load(args, measured, server.url, deadline_s, save))
                finally:
                    measured.memory_peak_mib = memory.peak_mib
            if server.process.poll() is not None:
                measured.notes.append(f"{placement}: the server ended under the load")
            if measured.notes or any(level.summary.failures for level in measured.levels):
                show(server)
        finally:
            if args.keep_logs:
                keep(server, args.keep_logs / f"{placement}.log")


async def load(
    args: argparse.Namespace, measured: Measured, url: str, deadline_s: float, save
) -> None:
    """Climb the ladders, keeping each level as soon as it is done."""
    workload = workload_of(args)
    async with client_of(args, url) as client:
        measured.health = await client.get_json("/health")
        # The first real request of each length pays for what only it finds cold.
        warm_up = await run_closed(client, workload, ClosedLoop(2, 4, warm_up=0))
        broken = [result for result in warm_up.results if not result.ok]
        if broken:
            measured.notes.append(f"{measured.placement}: warm-up failed: {broken[0].detail}")
            say(measured.notes[-1])
        if len(broken) == len(warm_up.results):
            return
        say("\n" + "\n".join(report.table_head()))
        try:
            async with (
                asyncio.timeout(deadline_s - time.perf_counter()),
                aclosing(climb(client, workload, ladders_of(args, deadline_s))) as steps,
            ):
                async for step in steps:
                    if isinstance(step, str):
                        measured.notes.append(f"{measured.placement}: {step}")
                        say(measured.notes[-1])
                        continue
                    measured.levels.append(step)
                    say(report.table_line(report.row(step)))
                    for line in report.notes([step]):
                        say(line)
                    save()
        except TimeoutError:
            measured.notes.append(f"{measured.placement}: out of time, the last level is lost")
            say(measured.notes[-1])


def show(server: Server) -> None:
    """Print the end of the server's log, and of each other log that speaks of an error."""
    for path in server.logs():
        lines = path.read_text(errors="replace").splitlines()
        if path != server.log:
            errors = [n for n, line in enumerate(lines) if "Error" in line or "ERROR" in line]
            if not errors:
                continue
            # Around the first one: what follows is mostly its consequence.
            lines = lines[max(0, errors[0] - 10) : errors[0] + 5]
        say("\n".join([f"--- {path.name}", *(line[:400] for line in lines[-_LOG_LINES:])]))


def keep(server: Server, target: Path) -> None:
    parts = [f"--- {path.name}\n{path.read_text(errors='replace')}" for path in server.logs()]
    report.write_text(target, "\n".join(parts))


def markdown(facts: Mapping[str, Any], all_measured: Sequence[Measured]) -> str:
    parts = [f"# Server under load\n\n`{facts['command']}`\n"]
    for measured in all_measured:
        ready = (
            "never ready" if measured.ready_s is None else f"ready after {measured.ready_s:.1f} s"
        )
        memory = ", ".join(
            f"{name} {'/'.join(map(str, values))} MiB"
            for name, values in (
                ("before", measured.memory_before_mib),
                ("idle", measured.memory_idle_mib),
                ("peak", measured.memory_peak_mib),
            )
            if values
        )
        parts.append(
            f"## {measured.placement}\n\n{ready}{'; GPU memory ' + memory if memory else ''}\n\n"
            + report.markdown(measured.levels, {**facts, "health": measured.health})
            + "".join(f"- {line}\n" for line in measured.notes)
        )
    return "\n".join(parts)


def say(text: str) -> None:
    print(text, flush=True)


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
    parser.add_argument("--capacity", type=int, help="streams per replica: all limits at once")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ready-timeout", type=float, default=300.0, help="s")
    parser.add_argument("--budget-s", type=float, default=540.0, help="for everything")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--report", type=Path, help="markdown file")
    parser.add_argument("--keep-logs", type=Path, help="folder for the server's logs")
    add_workload_options(parser)
    add_ladder_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    end_s = time.perf_counter() + args.budget_s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not is_free("127.0.0.1", args.port):
        say(f"port {args.port} is in use; choose another: --port")
        return 2
    # Faults in the settings show now, not after the checkpoint is written.
    all_measured = [
        Measured(placement, configured(placement, args.override, args.capacity))
        for placement in args.placements
    ]
    for measured in all_measured:
        AppConfig.model_validate(measured.config["applications"][0].get("args", {}))
    facts = {**report.environment(args.commit), "size": args.size, "budget_s": args.budget_s}
    facts["workload"] = asdict(workload_of(args))
    say(", ".join(f"{name} {facts[name]}" for name in ("gpus", "cpus", "versions", "commit")))

    def save() -> None:
        if args.out:
            servers = [m.as_json(requests=args.requests_in_json) for m in all_measured]
            report.write_json(args.out, {**facts, "servers": servers})
        if args.report:
            report.write_text(args.report, markdown(facts, all_measured))

    with tempfile.TemporaryDirectory(prefix="ttsb-model-") as scratch:
        checkpoint = args.checkpoint or Path(scratch) / f"{args.size}-custom-voice"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, args.size, "cuda" if facts["gpus"] else "cpu")
        for number, measured in enumerate(all_measured):
            now_s = time.perf_counter()
            share_s = (end_s - now_s) / (len(all_measured) - number)
            try:
                measure(args, measured, checkpoint, now_s + share_s - _STOP_S, save)
            finally:
                save()
    say("\n" + markdown(facts, all_measured))
    if args.plot:
        report.plot(args.plot, {measured.placement: measured.levels for measured in all_measured})
    return int(not all(measured.levels for measured in all_measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
