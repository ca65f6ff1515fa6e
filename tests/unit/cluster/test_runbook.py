"""The runbook's commands: each is run, or looked at as far as goes without a cluster."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from load_tests.scaling.trace import decisions
from load_tests.simulator.__main__ import main as simulate
from serve_app import serve_config
from serve_app.config import IngressConfig
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_card
from serve_app.http.access.keyring import Keyring
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import Status
from serve_app.pipeline import synthesize

# What each secret has.
SECRETS = {"tts-redis": ["password"], "tts-keys": ["keys.yaml"]}
REPOSITORY = Path(__file__).parents[3]
RUNBOOK = (REPOSITORY / "cluster" / "runbook.md").read_text("utf-8")
# What a controller writes; `grep` in the runbook looks for such lines.
LINE = 'INFO 2026-11-25 23:50:01,250 c -- scaling {"targets": {"Fused": 2}, "reason": "load"}\n'


def commands() -> list[str]:
    """Of its blocks and of its text, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", RUNBOOK, re.DOTALL)
    inline = re.findall(r"`((?:python -m|kubectl|serve|git|curl) [^`]+)`", RUNBOOK)
    lines = [line for block in blocks for line in block.splitlines()]
    parts = [part for line in [*lines, *inline] for part in re.split(r"; |\| (?=kubectl)", line)]
    return [part.split("      #")[0].strip() for part in parts if part.strip()]


def of(program: str) -> list[list[str]]:
    found = [shlex.split(command) for command in commands() if command.startswith(program)]
    assert found, f"the runbook has no command {program}"
    return found


PARSERS: dict[str, Callable[[Sequence[str]], Any]] = {
    "load_tests.simulator": import_module("load_tests.simulator.__main__").parse,
    "load_tests.nodes": import_module("load_tests.nodes.__main__").parse,
    "load_tests.scaling": import_module("load_tests.scaling.__main__").parse,
    "load_tests.outside": import_module("load_tests.outside.__main__").parse,
    "load_tests.chaos": import_module("load_tests.chaos.settings").parse,
}


def test_every_command_is_of_a_kind_that_is_looked_at() -> None:
    known = ("python -m", "kubectl", "curl", "grep", "serve ", "git ")
    assert [command for command in commands() if not command.startswith(known)] == []


@pytest.mark.parametrize("words", of("python -m"), ids=" ".join)
def test_our_own_commands_take_their_options(words: list[str]) -> None:
    module, arguments = words[2], words[3:]
    if module in PARSERS:
        PARSERS[module](arguments)
        return
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments[:1], "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_day_of_all_ingresses_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files are named as Serve does, and found by the pattern that is written there."""
    (command,) = [found for found in commands() if "load_tests.simulator --log" in found]
    logs = tmp_path / "serve"
    logs.mkdir()
    for number in (1, 2):
        log = logs / f"replica_tts_Ingress_{number}abc.log"
        log.write_text(
            f"INFO 2026-11-25 23:50:0{number},250 tts_Ingress {number}abc -- id=a status=200"
            " duration_ms=300.0 audio_s=4.8\n",
            encoding="utf-8",
        )
    (logs / "replica_tts_Fused_3abc.log").write_text(
        "INFO nothing of a request\n", encoding="utf-8"
    )
    asked = command.replace("/tmp/ray/session_latest/logs", str(tmp_path))
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {asked}"], capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    assert simulate(words[3:]) == 0
    assert "2 requests; 0 that were refused" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("kubectl")])
def test_kubectl_does_it_or_takes_its_options(command: str, tmp_path: Path) -> None:
    """What needs no cluster is done; of the others kubectl reads the words."""
    (tmp_path / "keys.yaml").write_text("keys: []\n", encoding="utf-8")
    is_done = "--dry-run=client" in command
    if not is_done:
        program, verb, *rest = command.split(" ")
        rest += ["-"] * command.endswith("-f")
        command = " ".join([program, verb, *rest, "--help"])
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if is_done:
        made = yaml.safe_load(done.stdout)
        name = made["metadata"]["name"]
        assert (made["kind"], sorted(made["data"])) == ("Secret", SECRETS[name])
        assert all(made["data"].values())


def test_what_is_asked_of_the_server_is_answered() -> None:
    talker = FakeTalker(4)

    async def status() -> Status:
        return Status("healthy")

    app = build_api(
        lambda request: synthesize(talker, FakeSpeechDecoder(), request),
        Catalog((fake_card(),)),
        IngressConfig(),
        status,
    )
    paths = [word.removeprefix("localhost:8000") for words in of("curl") for word in words[2:]]
    with TestClient(app) as client:
        assert [client.get(path).status_code for path in paths] == [200] * len(paths)


def test_the_lines_that_are_looked_for_are_the_policys(tmp_path: Path) -> None:
    (words,) = of("grep")
    log = tmp_path / "controller_1.log"
    log.write_text(f"INFO something else\n{LINE}", encoding="utf-8")
    done = subprocess.run(["grep", words[1], str(log)], capture_output=True, text=True, check=True)
    assert done.stdout == LINE
    assert decisions(done.stdout, 0.0)[0]["reason"] == "load"
    assert words[2].startswith("/tmp/ray/session_latest/logs/serve/controller_")


def test_files_that_are_applied_exist_and_are_configurations() -> None:
    named = re.findall(r"`?((?:cluster/)?(?:kubernetes|configs)/[\w./-]*)", RUNBOOK)
    for name in named:
        found = [REPOSITORY / name, REPOSITORY / "cluster" / name]
        assert any(path.exists() for path in found), name
    (words,) = [words for words in of("serve") if words[1] == "deploy"]
    serve_config.load(REPOSITORY / words[2])


def test_kubernetes_is_asked_for_what_the_manifests_have() -> None:
    text = "\n".join(
        file.read_text("utf-8") for file in (REPOSITORY / "cluster" / "kubernetes").glob("*.yaml")
    )
    secrets = [words[4] for words in of("kubectl") if words[1:4] == ["create", "secret", "generic"]]
    assert sorted(secrets) == sorted(SECRETS)
    for secret in secrets:
        assert re.search(rf"(?:secretName|secretKeyRef: {{name): {secret}\b", text), secret
    assert re.search(r"kind: StatefulSet\nmetadata:\s*\{?\s*name: redis", text)
    restarted = [words for words in of("kubectl") if words[1:3] == ["rollout", "restart"]]
    assert restarted == [["kubectl", "rollout", "restart", "statefulset/redis"]]


def test_the_keys_that_are_made_are_those_that_the_cluster_reads(tmp_path: Path) -> None:
    made, removed = (words for words in of("python -m") if words[2:4] == ["serve_app", "keys"])

    def keys(words: list[str]) -> str:
        command = [sys.executable, *words[1:]]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    config = serve_config.load(REPOSITORY / "cluster" / "serve.yaml")
    path = Path(config["applications"][0]["args"]["ingress"]["access"]["keys_file"])
    key = keys(made).strip()
    assert Keyring([tmp_path / path.name]).find(key) is not None
    assert f"--from-file={path.name}" in {word for words in of("kubectl") for word in words}
    keys(removed)
    assert Keyring([tmp_path / path.name]).find(key) is None
