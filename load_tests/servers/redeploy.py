"""`python -m load_tests.servers.redeploy ADDRESS FILE`: what `serve deploy` does, on the cluster of
ADDRESS, without the dashboard's agent. In a process of its own, since who has used Ray keeps it.
"""

import logging
import sys
from pathlib import Path

import ray
import yaml
from ray.serve._private.api import serve_start
from ray.serve.schema import ServeDeploySchema


def main(address: str, file: str) -> None:
    ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    serve_start().deploy_apps(ServeDeploySchema.model_validate(config))


if __name__ == "__main__":
    main(*sys.argv[1:])
