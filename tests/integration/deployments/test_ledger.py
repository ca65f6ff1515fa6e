"""The ledger of the keys' limits as an actor of a real Ray, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from load_tests.servers.child import search_path
from load_tests.servers.nodes import ON_LOOPBACK

pytest.importorskip("ray")

PROGRAM = """
import asyncio, json, ray
from serve_app.deployments.ray_serve.ledger import RayLedger
from serve_app.http.access.ledger import Allowed

async def asked(ledger, *fields):
    while True:  # the actor starts, or has just been lost
        try:
            return (await ledger.ask(*fields)).refused
        except ray.exceptions.RayActorError:
            await asyncio.sleep(0.1)

async def main():
    one, other, apart = RayLedger("a"), RayLedger("a"), RayLedger("b")
    rate, few = Allowed(per_minute=2), Allowed(at_once=2)
    said = {"rate": [await asked(ledger, "x", "key", rate, 1) for ledger in (one, other, one)]}
    said["apart"] = await asked(apart, "x", "key", rate, 1)
    said["running"] = [await asked(*fields) for fields in (
        (one, "one", "other key", few, 1), (other, "other", "other key", few, 1),
        (other, "other", "other key", few, 2))]
    one.tell("one", {"other key": 0})
    said["left"] = await asked(one, "one", "third", few, 1)  # behind what was told
    said["again"] = await asked(other, "other", "other key", few, 2)
    old = ray.get_actor("tts-key-limits:a", namespace="serve")
    ray.kill(old)
    try:
        while True:  # it may answer for a moment still
            await old.ask.remote("x", "nobody's key", rate, 0)
            await asyncio.sleep(0.05)
    except ray.exceptions.RayActorError:
        pass
    said["anew"] = [await asked(ledger, "x", "key", rate, 1) for ledger in (other, one, one)]
    return said

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         logging_level="ERROR")
print(json.dumps(asyncio.run(main())))
"""


def test_all_ingresses_of_an_application_ask_the_same_ledger():
    # Short: sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="tts-l-", dir="/tmp") as folder:
        environment = {
            **os.environ,
            **ON_LOOPBACK,
            "PYTHONPATH": search_path(),
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    # Ray tells of its losses on the same channel.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line) == {
        "rate": [None, None, "rate"],
        "apart": None,
        "running": [None, None, "at_once"],
        "left": None,
        "again": None,
        # A new one has a full measure.
        "anew": [None, None, "rate"],
    }
