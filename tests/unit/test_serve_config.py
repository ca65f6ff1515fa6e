"""Every key of configs/*.yaml means something, and a wrong one is reported."""

import copy
import inspect
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray.serve
import yaml
from pydantic import BaseModel
from ray.serve._private import constants
from ray.serve._private import haproxy as serve_haproxy
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ServeStatus,
)
from ray.serve.scripts import cli

from serve_app import __main__ as launcher
from serve_app import serve_config
from serve_app.config import AppConfig, Environment
from serve_app.launch import haproxy, overrides
from serve_app.launch.announce import Failure
from serve_app.launch.ending import Ending
from serve_app.launch.ports import Ports
from serve_app.launch.several import VOICE_ENCODER, deployments_of
from serve_app.models.checkpoint.embedded import embedded_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture
def config() -> dict[str, Any]:
    return copy.deepcopy(serve_config.load(CONFIGS / "serve.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_pass_the_strict_check(path: Path) -> None:
    serve_config.load(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_set_every_deployment(path: Path) -> None:
    for application in serve_config.load(path)["applications"]:
        names = [deployment["name"] for deployment in application["deployments"]]
        known = deployments_of(application["import_path"], application["args"])
        # None of them names a checkpoint that has to have a voice encoder.
        assert sorted(names) == sorted(set(known) - {VOICE_ENCODER})
        for deployment in application["deployments"]:
            assert deployment["health_check_period_s"] <= 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_serve_reads_the_environment_variables_that_are_set(path: Path) -> None:
    names = serve_config.load(path)["controller_options"]["runtime_env"]["env_vars"]
    source = inspect.getsource(constants)
    assert [name for name in names if f'"{name}"' not in source] == []


def test_haproxy_reads_what_the_launcher_sets(tmp_path: Path) -> None:
    source = inspect.getsource(constants) + inspect.getsource(serve_haproxy)
    with Ports() as ports:
        names = haproxy.environment(tmp_path, ports)
    source += inspect.getsource(Environment)
    assert [name for name in names if f'"{name}"' not in source] == []


def unknown_top(config: dict[str, Any]) -> None:
    config["proxy_locaton"] = "EveryNode"


def unknown_http(config: dict[str, Any]) -> None:
    config["http_options"]["prt"] = 1


def unknown_deployment_key(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][0]["max_ongoing_request"] = 1


def unknown_in_a_plain_dict(config: dict[str, Any]) -> None:
    scaling = {"target_ongoing_requests": 8, "min_replica": 1}
    config["applications"][0]["deployments"][1]["autoscaling_config"] = scaling


def unknown_argument(config: dict[str, Any]) -> None:
    config["applications"][0]["args"]["talker"]["num_gpu"] = 1


def wrong_type(config: dict[str, Any]) -> None:
    config["applications"][0]["args"]["talker"]["num_gpus"] = "half"


def unknown_deployment(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"].append({"name": "Fused"})


def actor_options(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][2]["ray_actor_options"] = {"num_gpus": 1}


def no_name(config: dict[str, Any]) -> None:
    del config["applications"][0]["name"]


def no_deployment(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][0] = "Ingress"


def misspelt_builder(config: dict[str, Any]) -> None:
    config["applications"][0]["import_path"] = "serve_app.app:built"


def misspelt_policy(config: dict[str, Any]) -> None:
    policy = "serve_app.deployments.autoscaling:Proportion"
    config["applications"][0]["autoscaling_policy"] = {"policy_function": policy}


def no_policy(config: dict[str, Any]) -> None:
    config["applications"][0]["autoscaling_policy"]["policy_function"] = 5


def no_route(config: dict[str, Any]) -> None:
    config["applications"][0]["route_prefix"] = "tts"


def no_time(config: dict[str, Any]) -> None:
    config["http_options"]["keep_alive_timeout_s"] = -1


def list_of_profiles(config: dict[str, Any]) -> None:
    config["applications"][0]["args"]["profile"] = ["latency"]


def few_frames(config: dict[str, Any]) -> None:
    config["applications"][0]["args"]["code_predictor"]["batch_sizes"] = [1, 8]


def no_recording(config: dict[str, Any]) -> None:
    config["applications"][0]["args"]["ingress"] = {"voices": {"min_s": 31}}


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (unknown_top, "proxy_locaton: unknown key"),
        (unknown_http, "http_options.prt: unknown key"),
        (unknown_deployment_key, "deployments[Ingress].max_ongoing_request: unknown key"),
        (unknown_in_a_plain_dict, "autoscaling_config.min_replica: unknown key"),
        (unknown_argument, "args.talker.num_gpu: "),
        (wrong_type, "args.talker.num_gpus: "),
        (unknown_deployment, "no deployment 'Fused' here; there are Ingress, SpeechDecoder"),
        (actor_options, "deployments.Talker.ray_actor_options: "),
        (no_name, "applications[0].name: is missing"),
        (no_deployment, "applications: one of their `deployments` is not a mapping"),
        (misspelt_builder, "serve_app.app:built does not exist; there are serve_app.app:build,"),
        (misspelt_policy, "'serve_app.deployments.autoscaling:Proportion' does not exist"),
        (no_policy, "policy_function: 5 does not exist"),
        (no_route, "route_prefix: is 'tts'; it has to begin with /"),
        (no_time, "keep_alive_timeout_s: -1 is not between 0 and"),
        (list_of_profiles, "args.profile: "),
        (few_frames, "the largest, 8, is less than the 64 of talker.max_num_seqs"),
        (no_recording, "min_s 31 is more than max_s 30"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_is_reported_with_its_place(
    config: dict[str, Any], tmp_path: Path, change: Any, reported: str
) -> None:
    change(config)
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(serve_config.ServeConfigError) as caught:
        serve_config.load(path)
    assert any(reported in problem for problem in caught.value.problems), str(caught.value)


def numbers(model: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of all settings that may be a number."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numbers(field.annotation, (*place, name))
        elif field.annotation in (int, float, int | None, float | None):
            yield (*place, name)


@pytest.mark.parametrize("value", [-1, 10**30, 1e30, math.nan, math.inf, "text", [1]], ids=str)
def test_no_setting_takes_a_number_that_none_can_be(config: dict[str, Any], value: object) -> None:
    places = list(numbers(AppConfig))
    assert len(places) > 50
    for place in places:
        args: dict[str, Any] = {}
        within = args
        for name in place[:-1]:
            within = within.setdefault(name, {})
        within[place[-1]] = value
        config["applications"][0]["args"] = args
        problems = list(serve_config.find_problems(config))
        assert any(f"args.{'.'.join(place)}: " in problem for problem in problems), place


@pytest.mark.parametrize(
    "text",
    ["", "- a\n", "a: [\n", "applications: []\n"],
    ids=["empty", "list", "broken", "nothing to serve"],
)
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(serve_config.ServeConfigError):
        serve_config.load(path)


def test_a_missing_file_is_reported_by_name(tmp_path: Path) -> None:
    with pytest.raises(serve_config.ServeConfigError, match=r"none\.yaml"):
        serve_config.load(tmp_path / "none.yaml")


def test_a_file_in_another_encoding_is_reported_by_name(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("applications: [] # für alle".encode("latin-1"))
    with pytest.raises(serve_config.ServeConfigError, match=r"latin\.yaml:\n  not UTF-8"):
        serve_config.load(path)


def test_host_and_port_replace_only_themselves(config: dict[str, Any]) -> None:
    changed = overrides.with_address(config, "0.0.0.0", 9000)
    assert changed["http_options"] == {**config["http_options"], "host": "0.0.0.0", "port": 9000}
    assert overrides.with_address(config) == config


@pytest.mark.parametrize("port", [0, -5, 65536])
def test_a_port_that_cannot_be_is_a_fault_of_the_configuration(
    config: dict[str, Any], port: int
) -> None:
    (problem,) = serve_config.find_problems(overrides.with_address(config, None, port))
    assert f"http_options.port: {port} is no port" in problem


def test_added_environment_variables_keep_those_of_the_file(config: dict[str, Any]) -> None:
    changed = overrides.with_env(config, {"A": "1"})
    env = changed["controller_options"]["runtime_env"]["env_vars"]
    assert env["A"] == "1"
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert list(serve_config.find_problems(changed)) == []


def test_a_model_is_added_where_the_file_names_none(config: dict[str, Any]) -> None:
    changed = overrides.with_model(config, "owner/name", None)
    assert changed["applications"][0]["args"]["model"] == "owner/name"
    again = overrides.with_model(changed, "other/name", None)
    assert again["applications"][0]["args"]["model"] == "owner/name"


def test_the_launcher_refuses_a_faulty_file_before_it_starts_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("proxy_locaton: EveryNode\n")
    assert launcher.main([str(path)]) == 2
    assert "proxy_locaton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["nope.yaml"], {}, "No such file"),
        (["--port", "70000"], {}, "65535"),
        ([], {"PORT": "http"}, "PORT must be a number"),
        (["--model", "/no/folder"], {}, "/no/folder: is neither a folder nor a hub id"),
        (["--model", "owner/name"], {}, "owner/name: needs a revision"),
        ([], {"TTS_MODEL": "owner/name"}, "owner/name: needs a revision"),
        (["--model", str(CONFIGS)], {}, "no config.json"),
        (["--host", "203.0.113.9"], {}, "this machine has no address 203.0.113.9"),
        (["--host", "no-such-host.invalid"], {}, "has no address no-such-host.invalid"),
        ([], {"TTS_API_KEYS_FILE": "/no/keys.yaml"}, "/no/keys.yaml: No such file"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_cannot_be_started_is_said_before_anything_is(
    arguments: list[str],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("PORT", "TTS_MODEL", "TTS_REVISION", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher.sys, "argv", ["qwen3-tts-serve", *arguments])
    with patch.dict(os.environ):  # it sets what is for Ray
        assert launcher.console() == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_weights_is_no_reason_to_start_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TTS_API_KEYS_FILE", raising=False)
    folder = shutil.copytree(embedded_checkpoint(), tmp_path / "voice")
    config = {"applications": [{"args": {"model": str(folder)}}]}
    assert list(launcher._faults(config, Environment.read())) == []
    (folder / "model.safetensors").unlink()
    (found,) = launcher._faults(config, Environment.read())
    assert str(folder / "model.safetensors") in found


def test_another_cluster_may_get_the_cards_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    config = serve_config.load("configs/serve.fused.yaml")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not launcher._says_of_cards(config)
    assert capsys.readouterr().err == ""
    config["applications"][0]["deployments"] = [{"name": "Fused", "num_replicas": 3}]
    says = "Fused of 'tts' asks for 3 replicas of 1 GPU at least, and the 2 GPUs have room for 2"
    assert not launcher._says_of_cards(config)
    assert capsys.readouterr().err == f"{says}; what finds none waits for another node\n"
    monkeypatch.delenv("RAY_ADDRESS")
    assert launcher._says_of_cards(config)
    assert capsys.readouterr().err == f"{says}\n"


TRACEBACK = "Traceback (most recent call last):\n  File ...\nValueError: no memory"


@pytest.mark.parametrize(
    ("model", "fused", "says", "is_final"),
    [
        ("DEPLOYING", ("UPDATING", ""), None, False),
        (
            "DEPLOYING",
            ("UPDATING", f"A replica failed to start with exception. Error:\n{TRACEBACK}"),
            "Fused of 'voice' failed to start and is tried again: ValueError: no memory",
            False,
        ),
        (
            "DEPLOY_FAILED",
            ("DEPLOY_FAILED", f"The deployment failed to start 3 times. Error:\n{TRACEBACK}"),
            "the application 'voice' does not start: ValueError: no memory",
            True,
        ),
        (
            "DEPLOY_FAILED",
            None,
            "the application 'voice' does not start: the application says so",
            True,
        ),
    ],
    ids=["starting", "tried again", "given up", "not built"],
)
def test_why_a_model_does_not_start_is_said_and_whether_any_other_does(
    model: str,
    fused: tuple[str, str] | None,
    says: str | None,
    is_final: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def application(status: str, deployments: dict[str, Any]) -> ApplicationStatusOverview:
        return ApplicationStatusOverview(
            status=ApplicationStatus(status),
            message="the application says so",
            last_deployed_time_s=0,
            deployments=deployments,
        )

    deployments = {}
    if fused is not None:
        state, message = fused
        deployments["Fused"] = DeploymentStatusOverview(
            status=DeploymentStatus(state),
            status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
            replica_states={},
            message=message,
        )
    there = {"tts": application("RUNNING", {}), "voice": application(model, deployments)}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.serve, "status", lambda: ServeStatus(applications=there))
    builders = {"tts": "serve_app.app:build_http", "voice": "serve_app.app:build_model"}
    stated = [{"name": name, "import_path": builder} for name, builder in builders.items()]
    expected = None if says is None else Failure(says, is_final)
    assert launcher._failure({"applications": stated}) == expected
    # Another model may serve all the same.
    stated.append({"name": "other", "import_path": "serve_app.app:build_model"})
    found = launcher._failure({"applications": stated})
    assert found == (None if says is None else Failure(says))
    # And what another cluster tells may be old.
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    found = launcher._failure({"applications": stated[:2]})
    assert found == (None if says is None else Failure(says))


class Unheard(Ending):
    """One that leaves the signals of the tests' own process alone."""

    def __init__(self) -> None:
        super().__init__(lambda pause: None, SystemExit)

    def listen(self) -> None: ...


def test_who_presses_ctrl_c_twice_sees_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(**options: object) -> None:
        raise KeyboardInterrupt  # while Serve shuts down, where nothing of its own catches it

    monkeypatch.setattr(launcher.cluster, "connect", lambda: None)
    monkeypatch.setattr(launcher.cluster, "disconnect", lambda: None)
    monkeypatch.setattr(cli.commands["run"], "callback", stopping)
    path = tmp_path / "serve.yaml"
    path.write_text("applications: []\n")
    assert launcher.run(path, Unheard()) == 0


def test_an_address_at_which_there_is_no_cluster_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    assert launcher.run(tmp_path / "serve.yaml", Unheard()) == 2
    assert "no Ray cluster can be joined at nowhere" in capsys.readouterr().err


def test_the_keys_of_a_config_file_are_read_before_anything_is_started(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "keys.yaml"
    config["applications"][0]["args"]["ingress"] = {"access": {"keys_file": str(missing)}}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    assert launcher.main([str(path)]) == 2
    assert f"{missing}: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("placement", serve_config.STAGES)
def test_the_voice_encoder_has_settings_like_any_other_deployment(
    config: dict[str, Any], placement: str
) -> None:
    (application,) = config["applications"]
    application["args"]["placement"] = placement
    kept = {"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 2}
    encoder: dict[str, Any] = {"name": VOICE_ENCODER, "autoscaling_config": kept}
    application["deployments"] = [encoder]
    assert list(serve_config.find_problems(config)) == []
    encoder["ray_actor_options"] = {"num_cpus": 1}
    (problem,) = serve_config.find_problems(config)
    assert "deployments.VoiceEncoder.ray_actor_options: set num_cpus" in problem


def test_labels_that_ray_would_refuse_are_found_before_a_replica_waits_for_them(
    config: dict[str, Any],
) -> None:
    (application,) = config["applications"]
    application["args"]["ingress"] = {"node_labels": {"zone": "in(a, b)", "spot": "!yes"}}
    assert list(serve_config.find_problems(config)) == []
    application["args"]["ingress"] = {"node_labels": {"zone": "near(a)"}}
    (problem,) = serve_config.find_problems(config)
    assert problem.startswith("applications[0].args.ingress.node_labels: ")
