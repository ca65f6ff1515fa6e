"""Change the replicas of a running server, and see when each is ready.

A process of its own speaks to the server's Ray cluster, as `serve deploy` does: what measures must
not import Ray, whose threads would take part of its time. Run as a module it is that process.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final, Self

from load_tests.servers.child import REPOSITORY, search_path
from load_tests.servers.looks import APPLICATION, Look, look
from load_tests.servers.server import MARK, Server, ServerFailed

_PERIOD_S: Final = 0.1
_START_S: Final = 60.0
_LOOKING: Final = "look"
_telling: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Reading:
    """Replicas by deployment; `at_s` of `time.perf_counter`.

    running: that run.
    target: that are there or come, those that stop included.
    stopping: that stop, which one that never found a node does for as long as it may take to drain.
    """

    at_s: float
    running: Mapping[str, int]
    target: Mapping[str, int]
    stopping: Mapping[str, int] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, int]:
        """Those that there are to be."""
        return {name: n - self.stopping.get(name, 0) for name, n in self.target.items()}


@dataclass(slots=True)
class Steering:
    """The other side of the process; a context manager that holds it.

    looking: also see what the replicas do, in `looks`; `not_seen` says what went wrong last.
    """

    server: Server
    looking: bool = False
    readings: list[Reading] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    not_seen: str = ""
    _process: "subprocess.Popen[str] | None" = None

    def __enter__(self) -> Self:
        env = {
            **os.environ,
            "PYTHONPATH": search_path(),
            "RAY_TMPDIR": str(self.server.folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            MARK: self.server.mark,
        }
        address = os.environ.get("RAY_ADDRESS") or self.server.gcs_address()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "load_tests.servers.steering", address),
                *([_LOOKING] * self.looking),
            ],
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.server.folder / "steering.log").open("w"),
            text=True,
        )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        if self._wait(lambda reading: True, _START_S) is None:
            self._process.kill()
            said = (self.server.folder / "steering.log").read_text(errors="replace")
            raise ServerFailed(f"its Ray cluster cannot be reached: {said[-2000:]}")
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def set(self, replicas: Mapping[str, int]) -> None:
        """Ask for so many replicas of each deployment named, neither more nor less."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dict(replicas)) + "\n")
        self._process.stdin.flush()

    def wait_for(
        self, replicas: Mapping[str, int], timeout_s: float, since_s: float | None = None
    ) -> float | None:
        """When (`time.perf_counter`) at least so many ran for the first time from `since_s` on,
        now by default; None where they do not within `timeout_s` from now.
        """

        def there(reading: Reading) -> bool:
            return all(reading.running.get(name, 0) >= n for name, n in replicas.items())

        return self._wait(there, timeout_s, since_s)

    def _wait(self, condition: Any, timeout_s: float, since_s: float | None = None) -> float | None:
        end_s = time.perf_counter() + timeout_s
        seen = len(self.readings)
        while since_s is not None and seen and self.readings[seen - 1].at_s >= since_s:
            seen -= 1
        while True:
            for reading in self.readings[seen:]:
                seen += 1
                if condition(reading):
                    return reading.at_s
            if time.perf_counter() > end_s:
                return None
            time.sleep(_PERIOD_S / 2)

    def _read(self, output: IO[str]) -> None:
        for line in output:
            if line.startswith("{"):
                said = json.loads(line)
                if "requests" in said:
                    self.looks.append(Look(**said))
                elif "broken" in said:
                    self.not_seen = said["broken"]
                elif "running" in said:
                    self.readings.append(Reading(**said))


def steer(address: str, *, looking: bool = False) -> None:
    """Deploy what each line of the input says, and tell what runs, until the input ends."""
    import ray
    from ray import serve

    ray.init(address=address, namespace="serve", logging_level=logging.ERROR, log_to_driver=False)
    lines: list[str] = []
    ended = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            lines.append(line)
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    if looking:
        threading.Thread(target=look, args=(_tell, ended), daemon=True).start()
    while not ended.is_set():
        while lines:
            _deploy(json.loads(lines.pop(0)))
        application = serve.status().applications.get(APPLICATION)
        deployments = application.deployments if application else {}
        if not deployments:
            # While Serve builds the application, anew in an update, it tells of none.
            time.sleep(_PERIOD_S)
            continue
        said = {
            "at_s": time.perf_counter(),
            **{
                key: {
                    name: sum(n for found, n in d.replica_states.items() if found == state)
                    for name, d in deployments.items()
                }
                for key, state in (("running", "RUNNING"), ("stopping", "STOPPING"))
            },
            "target": {name: sum(d.replica_states.values()) for name, d in deployments.items()},
        }
        _tell(said)
        time.sleep(_PERIOD_S)


def _tell(said: dict[str, Any]) -> None:
    """One line, whole, whichever thread says it."""
    with _telling:
        print(json.dumps(said), flush=True)


def _deploy(replicas: Mapping[str, int]) -> None:
    """Deploy the application that runs once more, with other numbers of replicas."""
    import ray
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client: Any = _get_global_client()
    details: Any = ray.get(client._controller.get_serve_instance_details.remote())
    application = details["applications"][APPLICATION]["deployed_app_config"]
    schema = ServeDeploySchema.model_validate(
        {"applications": [with_replicas(application, replicas)]}
    )
    client.deploy_apps(schema)


def with_replicas(application: Mapping[str, Any], replicas: Mapping[str, int]) -> dict[str, Any]:
    """The configuration of an application with the replicas of some deployments fixed."""
    deployments = {d["name"]: dict(d) for d in application.get("deployments", [])}
    for name, count in replicas.items():
        deployment = deployments.setdefault(name, {"name": name})
        scaling = deployment.get("autoscaling_config") or {"target_ongoing_requests": 48}
        deployment["autoscaling_config"] = {
            **scaling,
            "min_replicas": count,
            "max_replicas": count,
        }
    return {**application, "deployments": list(deployments.values())}


if __name__ == "__main__":
    steer(sys.argv[1], looking=_LOOKING in sys.argv[2:])
