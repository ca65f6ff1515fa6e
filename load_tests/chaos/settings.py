"""The command line of the chaos test, and the server that it makes of it."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.chaos.changes import CHANGES
from load_tests.chaos.compare import References
from load_tests.chaos.killer import OVERLAPS
from load_tests.chaos.loads import LOADS, Driver
from load_tests.loops.fleet import default_size
from load_tests.loops.options import frames_of
from load_tests.loops.workload import Workload
from load_tests.reports import circumstances
from load_tests.servers.processes import STAGES
from load_tests.servers.settings import CONFIGS, configured

_PARTS: Final = ("talker", "code_predictor", "speech_decoder")
_DEPLOYMENTS: Final = {
    "split": ("Talker", "CodePredictor", "SpeechDecoder"),
    "fused": ("Fused",),
}
_GPU_SHARES: Final = {"talker": 0.5, "code_predictor": 0.2, "speech_decoder": 0.3}
# Of the machine's cores that the replicas reserve: the rest is for the ingress. What Ray reserves
# binds nobody, and what the machine has is divided by its load.
_CORES: Final = 0.75


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.chaos",
        description="Load a server of its own, kill its processes, and look at every stream.",
    )
    parser.add_argument("--placement", choices=tuple(CONFIGS), default="split")
    parser.add_argument("--replicas", type=int, default=2, help="of each stage")
    parser.add_argument("--ingresses", type=int, default=1, help="10x overload fills one")
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs in all")
    parser.add_argument(
        "--stops", type=int, default=2, help="SIGSTOPs in all; every other is never continued"
    )
    parser.add_argument("--kinds", nargs="+", help="of processes; default: all of the placement")
    parser.add_argument(
        "--every", type=float, default=10.0, help="s between healing and the next kill, mean"
    )
    parser.add_argument(
        "--overlap",
        choices=OVERLAPS,
        help="kill on, though the last loss has not healed: the other kinds of replicas, or all",
    )
    parser.add_argument(
        "--changes",
        nargs="*",
        choices=CHANGES,
        default=[],
        help="made one after the other under full load, before any kill: one replica of each stage"
        " less, all of them again, other settings",
    )
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--phase-s", type=float, default=20.0, help="of one turn of a load")
    parser.add_argument(
        "--calm-s", type=float, help="of full load and of the last steady turn; default: --phase-s"
    )
    parser.add_argument(
        "--overload", type=float, nargs="+", default=[3.0, 10.0], help="times the capacity"
    )
    parser.add_argument(
        "--clients",
        type=int,
        default=default_size(),
        help="processes that send an overload: one is full with 1,300 refusals a second",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="go on for so long; default: once through the loads, and until all kills are done",
    )
    parser.add_argument(
        "--soak",
        action="store_true",
        help="steady load of --share of --streams for --minutes, a kill each minute of it,"
        " and what every process takes meanwhile",
    )
    parser.add_argument("--share", type=float, default=0.8, help="of --streams, in a soak")
    parser.add_argument("--streams", type=int, default=4, help="in flight at full load")
    parser.add_argument("--burst", type=int, default=8, help="requests at once")
    parser.add_argument("--pause", type=float, default=3.0, help="s between two bursts")
    parser.add_argument("--requests", type=int, default=12, help="distinct ones, asked in turn")
    parser.add_argument("--frames", default="20:60", help="codec frames of a request: N or MIN:MAX")
    parser.add_argument(
        "--tolerance",
        type=int,
        default=1,
        help="difference of a sample that is rounding; the decoder's sums are float32",
    )
    parser.add_argument(
        "--below-db",
        type=float,
        help="rounding is as well what lies so far below a frame in power: for decoders in bfloat16"
        " whose codes are equal",
    )
    parser.add_argument(
        "--no-compare", action="store_true", help="where a seed does not fix the codes: bf16"
    )
    parser.add_argument("--seed", type=int, default=0, help="of requests, arrivals and kills")
    parser.add_argument("--timeout-s", type=float, default=180.0, help="of one request")
    parser.add_argument("--voice", help="default: heart of the embedded checkpoint, else ryan")
    parser.add_argument("--checkpoint", type=Path, help="default: the embedded one")
    parser.add_argument("--size", help="write a random checkpoint of this size to --checkpoint")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ready-timeout", type=float, default=420.0, help="s")
    parser.add_argument("--override", action="append", default=[], metavar="[PLACEMENT:]KEY=VALUE")
    parser.add_argument("--profile", help="as PROFILE of the launcher")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    parser.add_argument(
        "--out", type=Path, default=Path("chaos-report"), help="folder of report, plots and logs"
    )
    args = parser.parse_args(arguments)
    if args.voice is None:
        args.voice = "ryan" if args.checkpoint or args.size else "heart"
    if args.calm_s is None:
        args.calm_s = args.phase_s
    if args.kinds is None:
        args.kinds = list(STAGES[args.placement])
    unknown = set(args.kinds) - set(STAGES[args.placement])
    if unknown:
        parser.error(f"no such processes in {args.placement}: {', '.join(sorted(unknown))}")
    if args.soak and not args.minutes:
        parser.error("a soak needs --minutes")
    return args


def workload_of(args: argparse.Namespace) -> Workload:
    low, high = frames_of(args.frames)
    return Workload(
        voice=args.voice,
        min_frames=low,
        max_frames=high,
        seed=args.seed,
        distinct=args.requests,
    )


def driver_of(args: argparse.Namespace, url: str, **options: Any) -> Driver:
    """Puts the requests of `args` to the server at `url`, `args.streams` at full load.

    `options` are fields of `Driver`; without one, a burst has as many requests.
    """
    return Driver(
        url,
        workload_of(args),
        References(args.tolerance, args.below_db, wanted=not args.no_compare),
        streams=args.streams,
        seed=args.seed,
        timeout_s=args.timeout_s,
        **{"size": args.streams, **options},
    )


def server_config(args: argparse.Namespace) -> dict[str, Any]:
    """The placement's config with a fixed number of replicas, small enough to fit the machine."""
    gpus = len(circumstances.gpus())
    overrides = replica_overrides(args.placement, args.replicas, gpus, ingresses=args.ingresses)
    return configured(args.placement, [*overrides, *args.override], None, args.profile)


def replica_overrides(
    placement: str, replicas: int, gpus: int, cores: int | None = None, ingresses: int = 1
) -> list[str]:
    """Settings for `replicas` of each stage and so many ingresses, neither more nor less.

    What each reserves is cut where all of them would not find room on this machine.
    """
    counts = {**dict.fromkeys(_DEPLOYMENTS[placement], replicas), "Ingress": ingresses}
    found = [
        f"deployments.{name}.autoscaling_config={{min_replicas: {count}, max_replicas: {count},"
        " target_ongoing_requests: 48}"
        for name, count in counts.items()
    ]
    share = _CORES * (cores or os.cpu_count() or 1) / (replicas * len(_PARTS))
    if share < 0.5:
        found += [f"{part}.num_cpus={share:.3f}" for part in _PARTS]
        found.append(f"ingress.num_cpus={min(0.2, share):.3f}")
    if 0 < gpus < replicas:
        found += [f"{part}.num_gpus={_GPU_SHARES[part] * gpus / replicas:.4f}" for part in _PARTS]
    return found
