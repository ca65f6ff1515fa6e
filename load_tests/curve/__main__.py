"""`python -m load_tests.curve --out FOLDER`: one server after the other on 1, 2, 4 ... GPUs.

Per placement one server is started. It begins with one replica of each stage on one GPU and is
measured there; replicas are added under load until the next number of GPUs is reached, and so on.
What is done is in FOLDER and not done again: a call that ran out of `--budget-s` goes on in the
next, at the first number of GPUs of which something is missing. Exit status: 0 everything asked
for is there, 3 some still waits, 1 a server did not start. Without a GPU, replicas on the CPU stand
for GPUs: a test of the command itself.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.curve.added import as_json
from load_tests.curve.compose import compose
from load_tests.curve.empty import empty_server
from load_tests.curve.measure import Curve, Scale, row_of, waiting
from load_tests.loops import fleet as fleets
from load_tests.loops.runner import ClosedLoop
from load_tests.loops.workload import Workload
from load_tests.nodes.settings import BACK, FRONT
from load_tests.reports import circumstances, files
from load_tests.servers.child import REPOSITORY, say, search_path, write_checkpoint
from load_tests.servers.gpu_watch import GpuWatch
from load_tests.servers.nodes import Room
from load_tests.servers.server import (
    STOP_S,
    Server,
    ServerFailed,
    cache_environment,
    keep,
    serving,
    show,
)
from load_tests.servers.settings import CONFIGS, configured
from load_tests.servers.starts import replica_starts
from load_tests.servers.steering import Steering
from serve_app.launch.ports import is_free
from serve_app.serve_config import STAGES

_GPUS: Final = (1, 2, 4, 8)
_USUAL: Final = Scale()
# Half of what an ingress carries with ease, so that it is at no number of GPUs what is measured.
_STREAMS_PER_INGRESS: Final = 24
_SETTLE_S: Final = 12.0
_ON_CPU: Final = ("talker", "code_predictor", "speech_decoder")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.curve", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, nargs="+", help="default: 1, 2, 4, 8, as there are")
    parser.add_argument("--placements", nargs="+", choices=tuple(CONFIGS), default=["fused"])
    parser.add_argument("--size", choices=("tiny", "tiny-0b6", "0.6b", "1.7b"), default="1.7b")
    parser.add_argument("--checkpoint", type=Path, help="written first where there is none")
    parser.add_argument("--profile", default="throughput")
    parser.add_argument("--per-gpu", type=int, nargs="+", default=list(_USUAL.per_gpu))
    parser.add_argument("--burst", type=int, default=_USUAL.burst, help="at once, per GPU")
    parser.add_argument("--rounds", type=int, default=_USUAL.rounds, help="requests per stream")
    parser.add_argument("--open-s", type=float, default=_USUAL.open_s)
    parser.add_argument("--loss-s", type=float, default=_USUAL.loss_s)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--node-per-gpu",
        action=argparse.BooleanOptionalAction,
        help="a Ray node for each GPU, which holds the stages of split to one; default: for split",
    )
    parser.add_argument(
        "--only-report", action="store_true", help="write it anew from what FOLDER has"
    )
    parser.add_argument("--clients", type=int, help="processes; default: a quarter of the cores")
    parser.add_argument("--ingresses", type=int, help="default: by the streams and the cores")
    parser.add_argument(
        "--settle",
        type=float,
        help=f"s from ready, and from the last replica that was added, to the next load; on GPUs"
        f" {_SETTLE_S:g}, in which large graphs are captured and the next standby imports",
    )
    parser.add_argument("--caches", type=Path, help="what compilers keep between starts")
    parser.add_argument("--override", action="append", default=[], metavar="[PLACEMENT:]KEY=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--ready-timeout", type=float, default=240.0, help="s, of a server and of a replica"
    )
    parser.add_argument("--budget-s", type=float, default=560.0, help="for one call")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    return parser.parse_args(arguments)


def has_node_per_gpu(args: argparse.Namespace, placement: str, gpus: int) -> bool:
    if args.node_per_gpu is None:
        return placement == "split" and gpus > 1
    return args.node_per_gpu


def settings(args: argparse.Namespace, placement: str, gpus: int, cores: int) -> dict[str, Any]:
    """A server that has one replica of each stage and may get `gpus` of them."""
    scaling = "{min_replicas: %d, max_replicas: %d, target_ongoing_requests: 48}"
    count = ingresses(args, gpus, cores)
    stages = [name for name in STAGES[placement] if name != "Ingress"]
    overrides = [f"deployments.Ingress.autoscaling_config={scaling % (count, count)}"]
    overrides += [f"deployments.{name}.autoscaling_config={scaling % (1, 1)}" for name in stages]
    on_nodes = has_node_per_gpu(args, placement, gpus)
    if not circumstances.gpus():
        # What is reserved binds nobody; all replicas have to find room.
        share = 0.7 * cores / (gpus * len(_ON_CPU))
        overrides += [f"{stage}.num_cpus={min(0.5, share):.3f}" for stage in _ON_CPU]
    if on_nodes or not circumstances.gpus():
        overrides.append(f"ingress.num_cpus={0.2 * cores / count:.3f}")
    if on_nodes:
        # Ingresses on the head: a node of the stages is full with one set.
        labelled = _ON_CPU if placement == "split" else _ON_CPU[:1]
        overrides += [f"{part}.node_labels={json.dumps(BACK)}" for part in labelled]
        overrides.append(f"ingress.node_labels={json.dumps(FRONT)}")
        overrides += [f"deployments.{name}.max_replicas_per_node=1" for name in stages]
    config = configured(placement, [*overrides, *args.override], None, args.profile)
    if on_nodes:
        # Proxies of several nodes would want the same ports of this machine.
        config["proxy_location"] = "HeadOnly"
    return config


def ingresses(args: argparse.Namespace, gpus: int, cores: int) -> int:
    """As many as the streams want, of at most half of the cores."""
    most = gpus * max(args.per_gpu)
    return args.ingresses or max(1, min(-(-most // _STREAMS_PER_INGRESS), cores // 2, 48))


def rooms(args: argparse.Namespace, placement: str, gpus: int, cores: int) -> list[Room]:
    """Of the head and of a node for each GPU; none where one node has them all.

    Without GPUs the nodes have none.
    """
    if not has_node_per_gpu(args, placement, gpus):
        return []
    there = len(circumstances.gpus())
    each = [index if index < there else None for index in range(gpus)]
    head = Room(max(1, cores // 4), None, FRONT)
    return [head, *(Room(max(2, 3 * cores // 4 // gpus), gpu, BACK) for gpu in each)]


def host(cores: int) -> dict[str, Any]:
    """Where cores and GPUs are, and how fast cores are when more of them work."""
    counts = sorted({1, max(1, cores // 4), cores})
    return {
        "places": circumstances.places(),
        "million_ms_together": [[n, circumstances.million_ms_together(n)] for n in counts],
    }


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    deadline_s = time.perf_counter() + args.budget_s
    file = args.out / "curve.json"
    if args.only_report:
        compose(args.out, json.loads(file.read_text(encoding="utf-8")))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not is_free("127.0.0.1", args.port):
        say(f"port {args.port} is in use; choose another: --port")
        return 2
    there = len(circumstances.gpus())
    counts = sorted(set(args.gpus or [n for n in _GPUS if n <= max(1, there)]))
    if there and counts[-1] > there:
        say(f"{counts[-1]} GPUs asked for, {there} here")
        return 2
    facts = {
        **circumstances.environment(args.commit),
        **host(os.cpu_count() or 1),
        "size": args.size,
        "profile": args.profile,
    }
    stored = _stored(file, facts)
    stored["commands"].append(facts["command"])
    scale = Scale(
        tuple(args.per_gpu),
        args.rounds,
        open_s=args.open_s,
        burst=args.burst,
        loss_s=args.loss_s,
        ready_timeout_s=args.ready_timeout,
    )
    workload = Workload(min_frames=args.frames, max_frames=args.frames, seed=args.seed)

    def save(row: dict[str, Any]) -> None:
        # Who goes on adds the same replicas once more.
        stored["rows"] = [r for r in stored["rows"] if _which(r) != _which(row)]
        stored["rows"].append(files.to_json(row))
        files.write_json(file, stored)
        compose(args.out, stored)

    complete, failed = True, False
    with tempfile.TemporaryDirectory(prefix="ttsc-") as scratch, _fleet(args) as fleet:
        checkpoint = args.checkpoint or Path(scratch) / f"{args.size}-custom-voice"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, args.size, "cuda" if there else "cpu")
        _empty(fleet, workload, counts[-1] * max(args.per_gpu), stored, save)
        env = dict(pair.split("=", 1) for pair in args.env)
        if args.caches:
            env = {**cache_environment(args.caches), **env}
            if there:
                _fill(env)
        for placement in args.placements:
            if not any(waiting(scale, stored["rows"], placement, gpus) for gpus in counts):
                continue
            left_s = deadline_s - time.perf_counter()
            if left_s < 60 + scale.seconds(1):
                complete = False
                continue
            config = settings(args, placement, counts[-1], os.cpu_count() or 1)
            nodes = rooms(args, placement, counts[-1], os.cpu_count() or 1)
            with serving(config, checkpoint, args.port, env, nodes) as server:
                try:
                    done = _climb(
                        args,
                        server,
                        placement,
                        counts,
                        scale,
                        workload,
                        fleet,
                        stored,
                        save,
                        deadline_s,
                    )
                except ServerFailed as error:
                    say(str(error))
                    show(server)
                    done, failed = False, True
                finally:
                    keep(server, args.out / "logs" / f"{placement}.log")
            complete = complete and done
    say("\n" + (args.out / "report.md").read_text(encoding="utf-8"))
    return 1 if failed else 0 if complete else 3


def _climb(
    args: argparse.Namespace,
    server: Server,
    placement: str,
    counts: Sequence[int],
    scale: Scale,
    workload: Workload,
    fleet: fleets.Fleet,
    stored: dict[str, Any],
    save: Any,
    deadline_s: float,
) -> bool:
    ready_s = server.wait_until_ready(min(args.ready_timeout, deadline_s - time.perf_counter()))
    say(f"{placement}: ready {ready_s:.1f} s after the start")
    started = {
        "placement": placement,
        "ready_s": ready_s,
        "replicas": as_json(replica_starts(server)),
    }
    started["ingresses"] = ingresses(args, counts[-1], os.cpu_count() or 1)
    stored["starts"].append(started)
    settle_s = args.settle if args.settle is not None else _SETTLE_S * bool(circumstances.gpus())
    settled_s = time.perf_counter() + settle_s
    stages = tuple(name for name in STAGES[placement] if name != "Ingress")
    with Steering(server, looking=True) as steering, GpuWatch() as gpu_watch:
        curve = Curve(
            server,
            steering,
            fleet,
            workload,
            placement,
            scale,
            stages,
            tuple(stored["rows"]),
            save,
            server.processes,
            deadline_s - STOP_S,
            gpu_watch,
        )
        curve.once_through(1)
        time.sleep(max(0.0, settled_s - time.perf_counter()))
        replicas = 1
        for gpus in counts:
            if not waiting(scale, stored["rows"], placement, gpus):
                continue
            left_s = deadline_s - STOP_S - time.perf_counter()
            if left_s < scale.seconds(gpus) / 2:
                return False
            if gpus > replicas:
                if not curve.add(replicas, gpus):
                    return False
                replicas = gpus
                settled_s = time.perf_counter() + settle_s
                curve.once_through(gpus)
                time.sleep(max(0.0, settled_s - time.perf_counter()))
            if not curve.at(gpus):
                return False
    return True


def _fleet(args: argparse.Namespace) -> fleets.Fleet:
    return fleets.Fleet(args.clients or fleets.default_size())


def _empty(
    fleet: fleets.Fleet, workload: Workload, streams: int, stored: dict[str, Any], save: Any
) -> None:
    """The row that shows what the clients can receive."""
    if any(row["placement"] == "empty" for row in stored["rows"]):
        return
    with empty_server(fleet.size) as url:
        run = fleet.run(url, workload, ClosedLoop(streams, 6 * streams, warm_up=1))
    save(row_of("empty", 0, f"closed, {streams}", run))


def _fill(env: Mapping[str, str]) -> None:
    """Compile what is known to be needed; a start that finds less compiles it itself."""
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.models.kernel_cache", "fill"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": search_path(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1:]
    say(f"kernel cache: {time.monotonic() - began_s:.1f} s, {' '.join(last)}")


def _which(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["placement"], row["gpus"], row["load"]


def _stored(file: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What earlier calls on the same machine and commit left; what others did is put aside."""
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if all(found["facts"].get(name) == facts[name] for name in ("gpus", "commit", "size")):
            return found
        aside = file.with_name(f"curve-{found['facts']['time_utc'].replace(':', '')}.json")
        file.rename(aside)
        say(f"what is stored is of another machine or commit: now {aside}, and begun anew")
    return {"facts": facts, "commands": [], "rows": [], "starts": []}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
