"""Asks the stages of a running server for their load, from a process that can be thrown away.

A process that has used Serve handles never quite lets go of the cluster, and the one that runs the
tests must.
Usage: observer.py <address of Ray> <deployment> <application>. Answers each line on stdin with one
line of JSON.
"""

import json
import sys

import ray
from ray import serve


def main(address: str, deployment: str, application: str) -> None:
    ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="ERROR")
    handle = serve.get_deployment_handle(deployment, app_name=application)
    for _ in sys.stdin:
        stats = handle.stats.remote().result(timeout_s=10)
        print(json.dumps(stats), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
