"""What is wrong with an application is said by plain `serve run`, which has no launcher's check;
and what the launcher sees of its cluster alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from load_tests.servers.child import REPOSITORY, free_port, kill_left, search_path, start_server
from load_tests.servers.nodes import ON_LOOPBACK
from load_tests.servers.server import MARK, marked
from serve_app.config import MODEL_BUILDER
from serve_app.models.checkpoint.embedded import embedded_checkpoint

# Answers each line on stdin with one: a process for each look would take more of the machine than
# what is looked at. Ends where Serve does not answer.
STATUS = """
import json, signal, sys, ray
from ray import serve
signal.alarm(120)
ray.init(sys.argv[1], namespace="serve", log_to_driver=False)
for _ in sys.stdin:
    signal.alarm(120)
    found = serve.status().applications.items()
    print(json.dumps({n: [a.status, a.message, *(d.message for d in a.deployments.values())]
                      for n, a in found}), flush=True)
    signal.alarm(0)
"""
GCS = re.compile(r"--gcs-address=([\w.:]+)")


@dataclass(frozen=True)
class Run:
    """A `serve run` that goes on, as it does whatever becomes of its applications."""

    process: "subprocess.Popen[bytes]"
    log: Path
    environment: dict[str, str]

    def wait_for(self, what: str, within_s: float = 300.0) -> str:
        """The line of its terminal with `what` in it."""
        end_s = time.monotonic() + within_s
        while True:
            lines = self.log.read_text(errors="replace").splitlines()
            found = next((line for line in lines if what in line), None)
            if found is not None:
                return found
            assert self.process.poll() is None, "\n".join(lines)
            assert time.monotonic() < end_s, "\n".join(lines)
            time.sleep(0.5)

    def wait_until(
        self, application: str, what: Callable[[list[str]], bool], within_s: float = 120.0
    ) -> None:
        """Wait for a status of an application."""
        end_s = time.monotonic() + within_s
        while not what(status := self.status()[application]):
            assert time.monotonic() < end_s, status
            time.sleep(0.5)

    def status(self) -> dict[str, list[str]]:
        """Of each application its status, its message and those of its deployments."""
        observer = self._observer
        assert observer.stdin is not None
        assert observer.stdout is not None
        observer.stdin.write("\n")
        observer.stdin.flush()
        # Ray itself prints as well.
        return json.loads(next(line for line in observer.stdout if line.startswith("{")))

    @cached_property
    def _observer(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", STATUS, self._address()],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _address(self) -> str:
        """Of the cluster that it has started; there may be others on this machine."""
        for pid in marked(self.environment[MARK]):
            found = GCS.search((Path("/proc") / str(pid) / "cmdline").read_text())
            if found is not None:
                return found[1]
        raise AssertionError("there is no raylet")


@pytest.fixture
def run() -> Iterator[Callable[[dict[str, Any]], Run]]:
    """Starts `serve run` with applications, `args` by name, and otherwise as configs/serve.yaml
    says, without a proxy: nobody asks for anything.
    """
    mark = uuid.uuid4().hex
    # Short: sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="tts-f-", dir="/tmp") as name:
        folder = Path(name)

        def start(applications: dict[str, Any]) -> Run:
            config = yaml.safe_load((REPOSITORY / "configs/serve.yaml").read_text())
            config["proxy_location"] = "Disabled"
            # For which `serve run` starts a proxy all the same: not where another server may be.
            config["http_options"]["port"] = free_port()
            config["controller_options"]["runtime_env"]["env_vars"].pop("RAY_SERVE_ENABLE_HA_PROXY")
            config["applications"] = [
                {
                    "name": application,
                    "route_prefix": None,
                    "import_path": MODEL_BUILDER,
                    "args": {"placement": "fused", "device": "cpu", **args},
                }
                for application, args in applications.items()
            ]
            (folder / "serve.yaml").write_text(yaml.safe_dump(config))
            environment = {
                **os.environ,
                **ON_LOOPBACK,
                "PYTHONPATH": search_path(),
                "RAY_TMPDIR": name,
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                # By default Ray's workers give way to all else that runs here.
                "RAY_worker_niceness": "0",
                MARK: mark,
            }
            for variable in ("RAY_ADDRESS", "TTS_MODEL", "TTS_REVISION", "TTS_API_KEY"):
                environment.pop(variable, None)
            serve = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", "local"]
            log = folder / "log"
            command = [*serve, str(folder / "serve.yaml")]
            return Run(start_server(command, log, environment), log, environment)

        try:
            yield start
        finally:
            kill_left(lambda: marked(mark))


def test_each_application_that_cannot_start_says_why_in_the_terminal_and_in_its_status(
    run: Callable[[dict[str, Any]], Run], tmp_path: Path
) -> None:
    weights, tokenizer = (
        shutil.copytree(embedded_checkpoint(), tmp_path / name) for name in ("weights", "tokenizer")
    )
    damaged = weights / "model.safetensors"
    os.truncate(damaged, damaged.stat().st_size - 1000)
    (tokenizer / "vocab.json").unlink()
    running = run(
        {
            "weights": {"model": str(weights)},
            "tokenizer": {"model": str(tokenizer)},
            "setting": {"talker": {"max_num_seqs": 0}},
            # What no look at files or settings could tell: the engine itself refuses it.
            "cache": {"talker": {"kv_cache_bytes": 1}},
        }
    )
    said = {
        "weights": f"{damaged}: cannot be read as safetensors",
        "tokenizer": f"{tokenizer}: has no vocab.json: it is no whole checkpoint",
        "setting": "args.talker.max_num_seqs: Input should be greater than or equal to 1",
    }
    for sentence in said.values():
        running.wait_for(f"the application does not start: {sentence}")
    # Serve builds each four times before it believes it.
    for name, sentence in said.items():
        running.wait_until(name, lambda status: status[0] == "DEPLOY_FAILED")
        assert sentence in running.status()[name][1]
    failed = "\x1b[0m Fused of 'cache' does not start: "  # behind Ray's name of the process
    why = running.wait_for(failed).partition(failed)[2]
    running.wait_until("cache", lambda status: any(why[:60] in message for message in status[2:]))


def test_more_replicas_than_the_cards_of_the_own_cluster_hold_end_the_start(tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs/serve.fused.yaml").read_text())
    config["applications"][0]["deployments"] = [{"name": "Fused", "num_replicas": 3}]
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        "PYTHONPATH": search_path(),
        # As if the machine had them.
        "RAY_OVERRIDE_RESOURCES": '{"GPU": 2}',
        "RAY_AUTH_MODE": "disabled",
        MARK: mark,
    }
    for variable in ("RAY_ADDRESS", "TTS_MODEL", "TTS_REVISION", "TTS_API_KEY"):
        environment.pop(variable, None)
    command = [sys.executable, "-m", "serve_app", "--port", str(free_port())]
    try:
        done = subprocess.run(
            [*command, str(tmp_path / "serve.yaml")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        says = (
            "Fused of 'tts' asks for 3 replicas of 1 GPU at least, and the 2 GPUs have room for 2"
        )
        assert says in done.stderr.splitlines()
    finally:
        kill_left(lambda: marked(mark))
