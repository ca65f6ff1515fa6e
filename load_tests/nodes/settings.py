"""A server over several nodes of this machine: its configuration, and the options of its tests."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from load_tests.reports import circumstances
from load_tests.servers.child import write_checkpoint
from load_tests.servers.nodes import Room
from load_tests.servers.server import cache_environment
from load_tests.servers.settings import CONFIGS, configured
from serve_app.serve_config import STAGES

# Ingresses are on the head, which is never lost, and stages on the other nodes; of these each has
# room for one replica of each.
FRONT: Final = {"tts-role": "ingress"}
BACK: Final = {"tts-role": "stages"}
_STAGE_CPUS: Final = 1.2
_INGRESS_CPUS: Final = 0.5
_NODE_CPUS: Final = 4
_HEAD_CPUS: Final = 1
_NODES: Final = 3


def add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--placement", choices=tuple(CONFIGS), default="fused")
    parser.add_argument(
        "--nodes", type=int, help="beside the head; default: one for each GPU, without any 3"
    )
    parser.add_argument("--frames", default="20:60", help="codec frames of a request: N or MIN:MAX")
    parser.add_argument("--requests", type=int, default=8, help="distinct ones, asked in turn")
    parser.add_argument("--timeout-s", type=float, default=180.0, help="of one request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="default: the embedded one")
    parser.add_argument("--size", help="write a random checkpoint of this size to --checkpoint")
    parser.add_argument("--caches", type=Path, help="what compilers keep between starts")
    parser.add_argument("--voice", help="default: heart of the embedded checkpoint, else ryan")
    parser.add_argument("--tolerance", type=int, default=1, help="difference that is rounding")
    parser.add_argument("--below-db", type=float, help="what else is rounding; as of chaos")
    parser.add_argument(
        "--no-compare", action="store_true", help="where a seed does not fix the codes: bf16"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ready-timeout", type=float, default=240.0, help="s")
    parser.add_argument("--override", action="append", default=[], metavar="[PLACEMENT:]KEY=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--commit", help="what to report where there is no git repository")


def completed(args: argparse.Namespace) -> argparse.Namespace:
    """`args` with what follows from this machine and from the others; writes the checkpoint.

    With GPUs every node has one of them.

    Raises:
        SystemExit: a size without a place to write the checkpoint to.
    """
    args.gpus = len(circumstances.gpus())
    args.nodes = args.nodes or args.gpus or _NODES
    args.voice = args.voice or ("ryan" if args.checkpoint else "heart")
    if args.caches:
        args.env = [*(f"{n}={v}" for n, v in cache_environment(args.caches).items()), *args.env]
    if args.size and args.checkpoint is None:
        raise SystemExit("--size needs --checkpoint, where it is written")
    if args.size and not args.checkpoint.exists():
        write_checkpoint(args.checkpoint, args.size, "cuda" if args.gpus else "cpu")
    return args


def spread_config(
    args: argparse.Namespace,
    least: int,
    most: int,
    policy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One replica of each stage per node, from `least` to `most` of each, one ingress.

    `policy` has the constants of `serve_app.scaling.tuning` that differ from those that ship.
    """
    counts = {name: (least, most) for name in STAGES[args.placement]}
    counts["Ingress"] = (1, 1)
    overrides = [
        f"deployments.{name}.autoscaling_config={{min_replicas: {low}, max_replicas: {high},"
        " target_ongoing_requests: 48, metrics_interval_s: 1, look_back_period_s: 5,"
        " upscale_delay_s: 0, downscale_delay_s: 0}"
        for name, (low, high) in counts.items()
    ]
    stages = ("talker", "code_predictor", "speech_decoder")
    labelled = stages if args.placement == "split" else stages[:1]
    overrides += [f"{part}.num_cpus={_STAGE_CPUS}" for part in stages]
    overrides += [f"{part}.node_labels={json.dumps(BACK)}" for part in labelled]
    overrides += [
        f"ingress.num_cpus={_INGRESS_CPUS}",
        f"ingress.node_labels={json.dumps(FRONT)}",
    ]
    config = configured(args.placement, [*overrides, *args.override], None, None)
    config["proxy_location"] = "HeadOnly"
    for deployment in config["applications"][0]["deployments"]:
        # As the builder has it where a node is a GPU. An ingress has its successor beside it.
        if deployment["name"] != "Ingress":
            deployment["max_replicas_per_node"] = 1
    config["applications"][0]["autoscaling_policy"]["policy_kwargs"] = dict(policy or {})
    return config


def rooms(args: argparse.Namespace) -> list[Room]:
    """Of the head and of each other node; as many have a GPU as there are GPUs."""
    gpus = [index if index < args.gpus else None for index in range(args.nodes)]
    return [Room(_HEAD_CPUS, None, FRONT), *(Room(_NODE_CPUS, gpu, BACK) for gpu in gpus)]


def default_out(name: str) -> Path:
    return Path(f"{name}-report")
