"""A server over several nodes of this machine: its configuration, and the options of its tests."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from load_tests.servers.settings import CONFIGS, configured
from serve_app.serve_config import STAGES

# What a replica of a stage reserves. A node of two CPUs holds one replica of each stage and no
# ingress besides; the head has room for an ingress and for no stage beside it.
_STAGE_CPUS: Final = 0.6
_INGRESS_CPUS: Final = 0.5
NODE_CPUS: Final = 2
HEAD_CPUS: Final = 1


def add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--placement", choices=tuple(CONFIGS), default="fused")
    parser.add_argument("--nodes", type=int, default=3, help="beside the head")
    parser.add_argument("--frames", default="20:60", help="codec frames of a request: N or MIN:MAX")
    parser.add_argument("--requests", type=int, default=8, help="distinct ones, asked in turn")
    parser.add_argument("--timeout-s", type=float, default=180.0, help="of one request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--voice", default="heart", help="of the embedded checkpoint")
    parser.add_argument("--tolerance", type=int, default=1, help="difference that is rounding")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ready-timeout", type=float, default=240.0, help="s")
    parser.add_argument("--override", action="append", default=[], metavar="[PLACEMENT:]KEY=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--commit", help="what to report where there is no git repository")


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
    overrides += [
        f"{part}.num_cpus={_STAGE_CPUS}" for part in ("talker", "code_predictor", "speech_decoder")
    ]
    overrides.append(f"ingress.num_cpus={_INGRESS_CPUS}")
    config = configured(args.placement, [*overrides, *args.override], None, None)
    config["proxy_location"] = "HeadOnly"
    for deployment in config["applications"][0]["deployments"]:
        # As the builder has it where a node is a GPU.
        deployment["max_replicas_per_node"] = 1
    config["applications"][0]["autoscaling_policy"]["policy_kwargs"] = dict(policy or {})
    return config


def node_cpus(args: argparse.Namespace) -> list[int]:
    return [HEAD_CPUS, *[NODE_CPUS] * args.nodes]


def default_out(name: str) -> Path:
    return Path(f"{name}-report")
