"""vLLM-Omni 0.26.0 on the same checkpoint, under the same client, on one GPU.

    python -m load_tests.peers.vllm_omni pack FOLDER      # where there is a package registry
    for part in FOLDER/omni-*/*.txz; do tar -C SITE -xJf $part; done        # on the GPU machine
    PYTHONPATH=SITE:. python -m load_tests.peers.vllm_omni serve-bench --out omni.json

For which machines `pack` is, its module says. `serve-bench` starts the server on a random
checkpoint whose EOS is unreachable, so that `max_new_tokens` alone decides the length. The server
makes one frame less than it samples tokens, and the request asks for one token more. Options for
`serve-bench` to try are other deploy profiles of the package (`--deploy`), settings of its stages
(`--stage0`, `--stage1`, `--extra`, each `key=value` in YAML) and `--enforce-eager`.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import yaml

from load_tests.loops.client import AudioShape, SpeechClient
from load_tests.loops.level import Level
from load_tests.loops.runner import (
    BurstLoop,
    ClosedLoop,
    OpenLoop,
    Run,
    run_burst,
    run_closed,
    run_loop,
    run_open,
)
from load_tests.loops.workload import SpeechCall, Workload
from load_tests.peers.vllm_omni_pack import VERSION, pack
from load_tests.reports import circumstances, files, report
from load_tests.servers.child import say, start_server, stop_server, write_checkpoint

NAME: Final = "vllm-omni"
_STOP_S: Final = 8.0
_LOG_LINES: Final = 80
# Kept free at the end of the budget, for stopping the server and writing results.
_END_S: Final = 15.0


# The server


def deploy_config(args: argparse.Namespace) -> dict[str, Any]:
    """The package's own profile with the options applied."""
    package = find_spec("vllm_omni")
    if package is None or package.origin is None:
        raise SystemExit("vllm_omni is not on the PYTHONPATH")
    file = Path(package.origin).parent / "deploy" / f"{args.deploy}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    stages = {stage["stage_id"]: stage for stage in config["stages"]}
    targets = {"stage0": stages[0], "stage1": stages[1]}
    targets["extra"] = config["connectors"]["connector_of_shared_memory"]["extra"]
    for option, target in targets.items():
        for setting in getattr(args, option):
            key, equals, value = setting.partition("=")
            if not equals:
                raise SystemExit(f"--{option}: not KEY=VALUE: {setting!r}")
            *path, last = key.split(".")
            inner = target
            for name in path:
                inner = inner.setdefault(name, {})
            inner[last] = yaml.safe_load(value)
    if args.enforce_eager:
        for stage in stages.values():
            stage["enforce_eager"] = True
    config["async_chunk"] = True
    return config


@dataclass(frozen=True, slots=True)
class OmniServer:
    """A server that was started, perhaps not ready yet; `started_s` is of `time.monotonic`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    started_s: float

    def wait_until_ready(self, timeout_s: float) -> float | None:
        """Return the seconds from start to the first 200 of /health; None if it never came."""
        told_s = 0.0
        while True:
            elapsed_s = time.monotonic() - self.started_s
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return elapsed_s
            except OSError:
                pass
            if self.process.poll() is not None:
                say(f"the server ended with {self.process.returncode} after {elapsed_s:.0f} s")
                return None
            if elapsed_s > timeout_s:
                say(f"not ready after {timeout_s:.0f} s")
                return None
            if elapsed_s > told_s + 15:
                told_s = elapsed_s
                say(f"{elapsed_s:5.0f} s: {self.last_lines(1)[:160]}")
            time.sleep(0.25)

    def last_lines(self, count: int) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-count:])

    def failure(self) -> str:
        """The log around the first traceback, and its end: what follows is consequence."""
        lines = [line[:300] for line in self.log.read_text(errors="replace").splitlines()]
        first = next((n for n, line in enumerate(lines) if "Traceback" in line), None)
        shown = lines[-_LOG_LINES:]
        if first is not None and first < len(lines) - _LOG_LINES:
            shown = [*lines[max(0, first - 10) : first + _LOG_LINES], "...", *shown]
        return "\n".join(shown)


@contextmanager
def serving(
    checkpoint: Path, config: Mapping[str, Any], port: int, caches: Path, log: Path
) -> Generator[OmniServer, None, None]:
    """Run the server in a session of its own; nothing of it is left afterwards."""
    caches.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    file = caches / "deploy.yaml"
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    names = {
        "TRITON_CACHE_DIR": "triton",
        "VLLM_CACHE_ROOT": "vllm",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "CUDA_CACHE_PATH": "cuda",
        "XDG_CACHE_HOME": "xdg",
    }
    environment = {
        **os.environ,
        **{name: str(caches.resolve() / place) for name, place in names.items()},
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_COLOR": "0",
        # It is not installed.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    command = [sys.executable, "-m", "vllm_omni.entrypoints.cli.main", "serve", str(checkpoint)]
    command += ["--omni", "--deploy-config", str(file), "--trust-remote-code"]
    command += ["--stage-init-timeout", "600"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    started_s = time.monotonic()
    process = start_server(command, log, environment)
    try:
        yield OmniServer(process, f"http://127.0.0.1:{port}", log, started_s)
    finally:
        stop_server(process, lambda: session_of(process.pid), _STOP_S)


def session_of(leader: int) -> list[int]:
    """Living processes of the session that `leader` began, itself included; Linux only."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name in parentheses: state, parent, group, session.
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):  # ended meanwhile
            continue
        if int(session) == leader and state not in "ZX":
            found.append(int(folder.name))
    return found


# Measurement


@dataclass(frozen=True, slots=True)
class OmniWorkload(Workload):
    """The same requests in this server's words.

    Raw audio has to be asked for, or it sends events. Seeds are left out unless `seeded`: for a
    request that has one, the server runs its code predictor apart from the batch.

    extra_tokens: sampled beyond the frames that are to come.
    """

    extra_tokens: int = 1
    seeded: bool = False

    def call(self, index: int, share: float = 1.0) -> SpeechCall:
        call = Workload.call(self, index, share)
        fields = json.loads(call.body)
        fields |= {"model": NAME, "task_type": "CustomVoice", "stream_format": "audio"}
        if not self.seeded:
            del fields["seed"]
        del fields["min_new_tokens"]
        fields["max_new_tokens"] += self.extra_tokens
        return replace(call, body=json.dumps(fields).encode())


async def load(
    args: argparse.Namespace,
    url: str,
    deadline_s: float,
    entry: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Run the levels into `entry`, each as soon as it is done; `deadline_s` is of perf_counter."""
    shape = AudioShape()
    workload = OmniWorkload(
        seed=args.seed,
        min_frames=args.frames,
        max_frames=args.frames,
        extra_tokens=args.extra_tokens,
        seeded=args.seeded,
    )

    def note(text: str) -> None:
        entry["notes"].append(text)
        say(text)

    def left_s() -> float:
        return deadline_s - time.perf_counter()

    async def plans() -> AsyncGenerator[Run, None]:
        for size in args.burst:
            if left_s() < 20:
                note(f"burst, {size} at once: left out, no time")
                continue
            yield await run_burst(client, workload, BurstLoop(size))
        for streams in args.closed:
            if left_s() < 10:
                note(f"closed, {streams} streams: left out, no time")
                continue
            requests = max(20, args.rounds * streams)
            yield await run_closed(
                client, workload, ClosedLoop(streams, requests, max_s=left_s() - 5)
            )
        for rate_hz in args.open:
            plan = OpenLoop(rate_hz, args.duration, args.warm_up, args.seed)
            if left_s() < plan.warm_up_s + plan.duration_s + 5:
                note(f"open, {plan.label}: left out, no time")
                continue
            yield await run_open(client, workload, plan)

    async with SpeechClient(url, shape, args.timeout_s) as client:
        probe = await client.speak(workload.call(0))
        if probe.samples and probe.error == "length":
            missing = args.frames - probe.samples // shape.samples_per_frame
            note(f"probe: {probe.detail}; asking for {missing} tokens more")
            workload = replace(workload, extra_tokens=workload.extra_tokens + missing)
        elif not probe.ok:
            note(f"probe failed: {probe.error}, {probe.detail}")
            return
        entry["extra_tokens"] = workload.extra_tokens
        # What only the first real load finds cold, at every number of streams on the way.
        streams = max([*args.closed, 2])
        warm = await run_closed(client, workload, ClosedLoop(streams, 2 * streams, max_s=60))
        failed = [result for result in warm.results if not result.ok]
        if failed:
            note(f"warm-up: {len(failed)} of {len(warm.results)} failed: {failed[0].detail}")
            if len(failed) == len(warm.results):
                return
        say(f"warm-up took {warm.span[1] - warm.span[0]:.1f} s\n" + "\n".join(report.table_head()))
        try:
            async with asyncio.timeout(left_s()), aclosing(plans()) as runs:
                async for run in runs:
                    level = Level.of(run)
                    entry["levels"].append(level)
                    say(report.table_line(report.row(level)))
                    for line in report.notes([level]):
                        say(line)
                    save()
        except TimeoutError:
            note("out of time, the last level is lost")


def serve_bench(args: argparse.Namespace) -> int:
    began_s = time.perf_counter()
    deadline_s = began_s + args.budget_s - _END_S
    entry: dict[str, Any] = {"placement": NAME, "notes": [], "levels": []}
    facts = {
        **circumstances.environment(args.commit),
        "peer": f"{NAME} {VERSION}",
        "size": args.size,
    }
    facts |= {"frames": args.frames, "voice": "ryan", "language": "english", "seed": args.seed}
    facts["seeded_requests"] = args.seeded

    def save() -> None:
        levels = [level.as_json(requests=False) for level in entry["levels"]]
        if args.out:
            files.write_json(args.out, {**facts, "servers": [{**entry, "levels": levels}]})
        if args.report:
            files.write_text(args.report, markdown(facts, entry))

    if args.url:
        run_loop(lambda: load(args, args.url, deadline_s, entry, save))
    else:
        entry["config"] = deploy_config(args)
        if not args.checkpoint.exists():
            write_checkpoint(args.checkpoint, args.size, args.device)
        say(f"{time.perf_counter() - began_s:.0f} s: starting {NAME}, log {args.log}")
        entry["memory_before_mib"] = circumstances.gpu_memory_used_mib()
        with serving(args.checkpoint, entry["config"], args.port, args.caches, args.log) as server:
            timeout_s = min(args.ready_timeout, deadline_s - time.perf_counter())
            entry["ready_s"] = server.wait_until_ready(timeout_s)
            if entry["ready_s"] is None:
                say(server.failure())
            else:
                say(f"ready {entry['ready_s']:.1f} s after the start")
                entry["memory_idle_mib"] = circumstances.gpu_memory_used_mib()
                run_loop(lambda: load(args, server.url, deadline_s, entry, save))
                entry["memory_after_mib"] = circumstances.gpu_memory_used_mib()
                if server.process.poll() is not None:
                    entry["notes"].append("the server ended under the load")
                if not entry["levels"] or any(lv.summary.failures for lv in entry["levels"]):
                    say(server.failure())
    save()
    say("\n" + markdown(facts, entry))
    return int(all(lv.summary.failures == lv.summary.requests for lv in entry["levels"]))


def markdown(facts: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    lines = [f"## {facts['peer']}, {facts['size']}, {facts['frames']} frames\n"]
    for name, unit in (
        ("ready_s", "s"),
        ("memory_before_mib", "MiB"),
        ("memory_idle_mib", "MiB"),
        ("memory_after_mib", "MiB"),
        ("extra_tokens", ""),
    ):
        if entry.get(name) is not None:
            lines.append(f"- {name}: {entry[name]} {unit}".rstrip())
    said = [f"- {text}" for text in entry["notes"]]
    return "\n".join([*lines, "", report.markdown(entry["levels"], facts), *said]) + "\n"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.peers.vllm_omni",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pack", help="download and archive").add_argument("folder", type=Path)
    bench = commands.add_parser("serve-bench", help="start the server, load it, stop it")
    bench.add_argument("--checkpoint", type=Path, default=Path("/tmp/omni-checkpoint"))
    bench.add_argument("--size", choices=("tiny", "0.6b", "1.7b"), default="1.7b")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    bench.add_argument("--deploy", default="qwen3_tts", help="a profile of the package")
    for option in ("--stage0", "--stage1", "--extra"):
        bench.add_argument(option, nargs="*", default=[], metavar="KEY=VALUE")
    bench.add_argument("--enforce-eager", action="store_true", help="no graphs, no compilation")
    bench.add_argument("--url", help="measure this one, which is running; start nothing")
    bench.add_argument("--port", type=int, default=8091)
    bench.add_argument("--caches", type=Path, default=Path("/tmp/omni-caches"))
    bench.add_argument("--log", type=Path, default=Path("/tmp/omni-caches/server.log"))
    bench.add_argument("--ready-timeout", type=float, default=330.0, help="s")
    bench.add_argument("--budget-s", type=float, default=560.0, help="for everything")
    bench.add_argument("--frames", type=int, default=55, help="codec frames of each request")
    bench.add_argument("--extra-tokens", type=int, default=1, help="sampled beyond the frames")
    bench.add_argument("--burst", type=int, nargs="*", default=[16, 64])
    bench.add_argument("--closed", type=int, nargs="*", default=[1, 16, 64])
    bench.add_argument("--open", type=float, nargs="*", default=[5.0, 20.0], help="requests/s")
    bench.add_argument("--rounds", type=int, default=4, help="requests per closed stream")
    bench.add_argument("--duration", type=float, default=15.0, help="s, of each open level")
    bench.add_argument("--warm-up", type=float, default=3.0, help="s, before each open level")
    bench.add_argument("--timeout-s", type=float, default=60.0, help="of one request")
    bench.add_argument("--seed", type=int, default=0, help="of texts and arrivals")
    bench.add_argument("--seeded", action="store_true", help="a seed in every request")
    bench.add_argument("--commit", help="what to report where there is no git repository")
    bench.add_argument("--out", type=Path, help="JSON file")
    bench.add_argument("--report", type=Path, help="markdown file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    if args.command == "pack":
        pack(args.folder)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return serve_bench(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
