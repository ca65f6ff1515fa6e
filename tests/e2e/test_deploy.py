"""`serve deploy` on a Ray cluster that no launcher of ours started: several checkpoints in `split`,
one added and removed while others speak, and settings that change without a restart.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from load_tests.servers.child import REPOSITORY, free_port, kill_left
from load_tests.servers.processes import processes
from load_tests.servers.server import MARK, marked
from serve_app import serve_config
from serve_app.launch import haproxy, overrides
from serve_app.launch.ports import Ports
from tests.conftest import TinyCheckpoint
from tests.e2e.streams import CLIENT_S, LIMITS, NUM_FRAMES, Streams, ask
from tests.waiting import wait_until

# Generous: two slow cores start nine processes with a framework each.
START_S = 600.0
STAGES = ("SpeechDecoder", "Talker", "CodePredictor")
CPUS = 0.1
ONE = {"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 48}
SMALL = {
    "talker": {"max_num_seqs": 4, "max_model_len": 256, "num_cpus": CPUS},
    "code_predictor": {"num_cpus": CPUS},
    "speech_decoder": {"max_streams": 4, "num_cpus": CPUS},
}
SPEAKER = {"model": "voices", "voice": "serena"}
DESCRIBED = {"instructions": "A deep, calm voice."}
RESTART = 1012
CLONED = {"speaker_embedding": [0.1] * 64}


@dataclass(frozen=True)
class Deployed:
    """A cluster, and what `serve deploy` has made of a file."""

    url: str
    dashboard: str
    folder: Path
    checkpoints: Mapping[str, Path]
    environment: Mapping[str, str]
    of_haproxy: Mapping[str, str]

    def deploy(self, *models: str, streams: int = 8, **user_config: Any) -> None:
        """Have these models served, the first by default, with such settings of the ingress.

        Another number of `streams` replaces it.
        """
        config = yaml.safe_load((REPOSITORY / "configs/serve.several.yaml").read_text())
        config["http_options"]["port"] = int(self.url.rpartition(":")[2])
        config = overrides.with_env(config, dict(self.of_haproxy))
        front, model = config["applications"][:2]
        front["args"] = {
            "streams": streams,
            "ingress": {
                "num_cpus": 0.2,
                "voices": {"path": str(self.folder / "voices")},
                "live": {"idle_timeout_s": START_S},
            },
        }
        front["deployments"][0]["user_config"] = {"default_model": models[0], **user_config}
        # One of each: on a busy machine late audio would have the policy start more of them.
        model["deployments"] = [{"name": name, "autoscaling_config": ONE} for name in STAGES]
        config["applications"] = [front] + [
            {
                **model,
                "name": name,
                "args": {
                    "model": str(self.checkpoints[name]),
                    "served_model_name": name,
                    "placement": "split",
                    **SMALL,
                },
            }
            for name in models
        ]
        assert not list(serve_config.find_problems(config))
        file = self.folder / "serve.yaml"
        file.write_text(json.dumps(config))
        command = ["deploy", str(file), "--address", self.dashboard]
        done = subprocess.run(
            [sys.executable, "-m", "ray.serve.scripts", *command],
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def listed(self) -> list[str]:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"{self.url}/v1/models", timeout=10)
            if answer.status_code == 200:
                return [model["id"] for model in answer.json()["data"]]
        return []

    def is_ready(self, model: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready?model={model}", timeout=10).status_code == 200
        return False

    def health(self) -> dict[str, Any]:
        served = httpx.get(f"{self.url}/health", timeout=20).json()["served"]
        return {model["model"]: model for model in served}

    def samples(self, **fields: Any) -> bytes:
        content = ask(self.url, **fields).raise_for_status().content
        assert len(content) == NUM_FRAMES * 1920 * 2
        return content

    def pids(self, kind: str) -> set[int]:
        """Of the processes of a kind, by `load_tests.servers.processes`."""
        mark = self.environment[MARK]
        return {process.pid for process in processes(marked(mark)) if process.kind == kind}


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    return wait_until(condition, START_S, every_s=0.3, told=what)


@pytest.fixture(scope="module")
def deployed(tiny_checkpoint: TinyCheckpoint) -> Iterator[Deployed]:
    # Sockets lie below it: its path has to be short.
    with (
        tempfile.TemporaryDirectory(prefix="tts-dep-", dir="/tmp") as name,
        Ports() as ports,
    ):
        folder = Path(name)
        environment = {
            **os.environ,
            MARK: uuid.uuid4().hex,
            "RAY_TMPDIR": name,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # As the launcher has it: by default what Ray starts gives way to all else on a machine.
            "RAY_worker_niceness": "0",
        }
        for variable in ("TTS_MODEL", "TTS_REVISION", "RAY_ADDRESS"):
            environment.pop(variable, None)
        dashboard = free_port()
        with (folder / "ray.log").open("w") as log:
            cluster = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                    *("--node-ip-address=127.0.0.1", f"--port={free_port()}", "--num-cpus=2"),
                    *("--include-dashboard=true", f"--dashboard-port={dashboard}"),
                    *(f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={name}/ray"),
                    f"--ray-client-server-port={free_port()}",
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            made = Deployed(
                f"http://127.0.0.1:{free_port()}",
                f"http://127.0.0.1:{dashboard}",
                folder,
                {
                    "voices": tiny_checkpoint("custom_voice"),
                    "design": tiny_checkpoint("voice_design"),
                    "base": tiny_checkpoint("base"),
                },
                environment,
                haproxy.environment(folder, ports),
            )

            def answers() -> bool:
                assert cluster.poll() is None, (folder / "ray.log").read_text()
                return _answers(made.dashboard)

            wait_for(answers, "the dashboard does not answer")
            made.deploy("voices", "design")
            for model in ("voices", "design"):
                wait_for(lambda model=model: made.is_ready(model), model)
            yield made
        finally:
            # Nobody looks at how it ends: asked to, `ray start --block` takes half a minute.
            kill_left(lambda: marked(environment[MARK]))
            cluster.wait(10)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/api/version", timeout=5).status_code == 200
    return False


def test_each_of_several_checkpoints_in_split_answers_for_its_own(deployed: Deployed) -> None:
    assert deployed.listed() == ["voices", "design"]
    for model in deployed.health().values():
        assert model["application"] == model["model"]
        assert {name: model["replicas"][name]["ready"] for name in STAGES} == dict.fromkeys(
            STAGES, 1
        )
    spoken = deployed.samples(**SPEAKER)
    assert spoken == deployed.samples(voice="serena")
    described = deployed.samples(**DESCRIBED)
    assert described == deployed.samples(model="design", **DESCRIBED)
    assert spoken != described


def test_a_checkpoint_is_added_and_removed_while_another_speaks(deployed: Deployed) -> None:
    whole = deployed.samples(**SPEAKER)
    before = {kind: deployed.pids(kind) for kind in ("ingress", "talker")}
    refused = ask(deployed.url, **CLONED)
    assert refused.status_code == 400
    with Streams(deployed.url, **SPEAKER) as streams:
        deployed.deploy("voices", "design", "base")
        wait_for(lambda: deployed.is_ready("base"), "base")
        assert deployed.samples(**CLONED) == deployed.samples(model="base", **CLONED)
        # Nothing that was there has been started anew.
        assert deployed.pids("ingress") == before["ingress"]
        assert before["talker"] < deployed.pids("talker")
        deployed.deploy("voices", "design")
        wait_for(lambda: deployed.listed() == ["voices", "design"], "base is still there")
        wait_for(lambda: deployed.pids("talker") == before["talker"], "its talker still runs")
        count = len(streams.answers)
        streams.until(lambda: len(streams.answers) > count)
    assert streams.failures == []
    assert set(streams.answers) == {whole}
    gone = ask(deployed.url, model="base", **CLONED)
    assert gone.status_code == 404, gone.text


def test_an_ingress_that_is_replaced_lets_go_of_what_lasts_between_two_utterances(
    deployed: Deployed,
) -> None:
    before = deployed.pids("ingress")
    address = deployed.url.replace("http", "ws", 1) + "/v1/audio/speech/stream"
    settings = {"type": "session.config", "response_format": "pcm", **SPEAKER, **LIMITS}
    with connect(address) as idle, connect(address) as speaking:
        for socket, text in ((idle, ""), (speaking, "As far as I know, ")):
            socket.send(json.dumps(settings))
            socket.send(json.dumps({"type": "input.text", "text": text}))
        deployed.deploy("voices", "design", streams=9)
        assert _rest(idle) == ([], RESTART)
        # The next one is there, and this one still speaks.
        assert deployed.pids("ingress") > before
        for message in ({"type": "input.text", "text": "this is so."}, {"type": "input.done"}):
            speaking.send(json.dumps(message))
        messages, code = _rest(speaking)
        assert (messages[-1]["type"], messages[-1].get("error"), code) == (
            *("session.done", None, RESTART),
        )
    wait_for(lambda: not deployed.pids("ingress") & before, "the ingress of before does not end")
    # For who comes after, all is as it was.
    there = deployed.pids("ingress")
    deployed.deploy("voices", "design")
    wait_for(lambda: not deployed.pids("ingress") & there, "the second ingress does not end")
    assert deployed.samples(**SPEAKER)


def _rest(socket: ClientConnection) -> tuple[list[Any], int]:
    """The messages until the server closes a connection, and its code."""
    messages = []
    try:
        while True:
            raw = socket.recv(timeout=START_S)
            if isinstance(raw, str):
                messages.append(json.loads(raw))
    except ConnectionClosed as closed:
        return messages, closed.rcvd.code if closed.rcvd is not None else -1


def test_user_config_changes_without_a_restart(deployed: Deployed) -> None:
    before = {kind: deployed.pids(kind) for kind in ("ingress", "talker")}
    deployed.deploy("design", "voices", admission={"max_wait_s": 0.0, "max_queued": 0})
    wait_for(lambda: deployed.listed() == ["design", "voices"], "the default is the old one")
    # Who would have to wait is refused now, and the others are not.
    with contextlib.ExitStack() as busy:
        for _ in range(8):
            busy.enter_context(Streams(deployed.url, **SPEAKER))
        deadline = time.monotonic() + CLIENT_S
        while ask(deployed.url, **SPEAKER).status_code != 429:
            assert time.monotonic() < deadline
        assert deployed.samples(model="design", **DESCRIBED)
    assert {kind: deployed.pids(kind) for kind in before} == before
