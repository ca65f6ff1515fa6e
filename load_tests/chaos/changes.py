"""Changes of a server that its operator plans: fewer replicas, more again, other settings."""

import asyncio
import copy
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

from load_tests.servers.child import REPOSITORY, say, search_path
from load_tests.servers.processes import STAGES, ServerProcess
from load_tests.servers.server import Server

Change = Literal["remove", "add", "update"]
CHANGES: Final[tuple[Change, ...]] = ("remove", "add", "update")
_LOOK_S: Final = 0.5
_DEPLOY_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of one change: seconds until every process of the stages was as it should be;
    None where that was not seen."""

    change: str
    at_s: float
    done_s: float | None


@dataclass(slots=True)
class Operator:
    """Deploys changed configurations on a running server.

    Args:
        config: with which the server was started, its model named.
        server: that runs.
        placement: of the server.
        replicas: of each stage at the start.
        within_s: a change that takes longer is given up.
    """

    config: Mapping[str, Any]
    server: Server
    placement: str
    replicas: int
    within_s: float = 300.0

    async def make(self, change: Change, number: int, made: list[Changed]) -> None:
        """Deploy the change, and return when it is done; what became of it is added to `made`."""
        before = await asyncio.to_thread(self._of_stages)
        began_s = time.perf_counter()
        say(f"{change}: deployed")
        config = changed(self.config, change, self.replicas, number)
        await asyncio.to_thread(self._deploy, config)
        while time.perf_counter() - began_s < self.within_s:
            await asyncio.sleep(_LOOK_S)
            now = await asyncio.to_thread(self._of_stages)
            if is_done(change, before, now, self.replicas):
                done_s = time.perf_counter() - began_s
                say(f"{change}: done after {done_s:.1f} s")
                made.append(Changed(change, began_s, done_s))
                return
        made.append(Changed(change, began_s, None))

    def _of_stages(self) -> list[ServerProcess]:
        kinds = (*STAGES[self.placement], "ingress")
        return [process for process in self.server.processes() if process.kind in kinds]

    def _deploy(self, config: Mapping[str, Any]) -> None:
        file = self.server.folder / "changed.yaml"
        file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "load_tests.servers.redeploy",
                self.server.gcs_address(),
                str(file),
            ],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHONPATH": search_path(),
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_AUTH_MODE": "disabled",
            },
            check=True,
            timeout=_DEPLOY_S,
            stdout=subprocess.DEVNULL,
        )


def changed(
    config: Mapping[str, Any], change: Change, replicas: int, number: int
) -> dict[str, Any]:
    """`config` with one replica of each stage less, with all of them, or with another setting."""
    result = copy.deepcopy(dict(config))
    (application,) = result["applications"]
    if change == "update":
        ingress = application.setdefault("args", {}).setdefault("ingress", {})
        ingress["reader_timeout_s"] = 61.0 + number
        return result
    wanted = replicas - 1 if change == "remove" else replicas
    for deployment in application["deployments"]:
        if deployment["name"] != "Ingress":
            scaling = deployment["autoscaling_config"]
            scaling["min_replicas"] = scaling["max_replicas"] = wanted
    return result


def is_done(
    change: Change, before: Sequence[ServerProcess], now: Sequence[ServerProcess], replicas: int
) -> bool:
    """Whether the processes are those that `change` leads to, and no others are left."""
    counts: dict[str, int] = {}
    for process in now:
        counts[process.kind] = counts.get(process.kind, 0) + 1
    stages = {kind: count for kind, count in counts.items() if kind != "ingress"}
    wanted = replicas - 1 if change == "remove" else replicas
    kinds = {process.kind for process in before} - {"ingress"}
    if set(stages) != kinds or any(count != wanted for count in stages.values()):
        return False
    old = {process.pid for process in before}
    return change != "update" or not any(process.pid in old for process in now)
