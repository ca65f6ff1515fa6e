"""The app builder's decisions, without a cluster."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

import serve_app
from serve_app import app as builders
from serve_app.app import (
    _SHARE_OF_SEVERAL,
    bind,
    build,
    build_http,
    build_model,
    make_http_plan,
    make_plan,
    voice_encoder,
)
from serve_app.config import (
    AppConfig,
    CodePredictorConfig,
    HttpConfig,
    IngressConfig,
    SpeechDecoderConfig,
    TalkerConfig,
)
from serve_app.deployments.limits import ROUTER, deployment_options
from serve_app.deployments.ray_serve.front import OPTIONS, Front
from serve_app.models.checkpoint.card import describe
from serve_app.models.checkpoint.embedded import embedded_checkpoint
from serve_app.models.checkpoint.locate import description_folder
from serve_app.types import ModelCard

SPLIT = {"Ingress", "SpeechDecoder", "Talker", "CodePredictor"}
FUSED = {"Ingress", "Fused"}
LAPTOP = {"CPU": 2.0, "memory": 8e9}
SERVER = {"CPU": 16.0, "GPU": 1.0}


def config(**changes: Any) -> AppConfig:
    return AppConfig.model_validate(changes)


def described(args: AppConfig) -> ModelCard:
    return describe(args, description_folder(args))


@pytest.mark.parametrize(("placement", "names"), [("split", SPLIT), ("fused", FUSED)])
def test_each_deployment_of_a_placement_gets_complete_options(
    placement: str, names: set[str]
) -> None:
    plan = make_plan(config(placement=placement), SERVER)
    assert set(plan.actor_options) == names
    for options in plan.actor_options.values():
        assert set(options) == {"num_cpus", "num_gpus", "runtime_env"}


def test_replicas_go_to_the_nodes_that_are_labelled_for_them() -> None:
    gpu, front = {"tts-role": "gpu"}, {"tts-role": "ingress"}
    split = config(talker={"node_labels": gpu}, ingress={"node_labels": front})
    options = make_plan(split, SERVER).actor_options
    assert options["Talker"]["label_selector"] == gpu
    assert options["Ingress"]["label_selector"] == front
    assert "label_selector" not in options["SpeechDecoder"]
    fused = config(placement="fused", talker={"node_labels": gpu})
    assert make_plan(fused, SERVER).actor_options["Fused"]["label_selector"] == gpu
    with pytest.raises(ValueError, match=r"talker\.node_labels"):
        config(placement="fused", speech_decoder={"node_labels": gpu})
    alone = HttpConfig.model_validate({"ingress": {"node_labels": front}})
    assert make_http_plan(alone, SERVER).actor_options["Ingress"]["label_selector"] == front


@pytest.mark.parametrize(
    ("device", "cluster", "chosen"),
    [
        ("auto", SERVER, "cuda"),
        ("auto", LAPTOP, "cpu"),
        ("cuda", SERVER, "cuda"),
        ("cpu", SERVER, "cpu"),
    ],
)
def test_the_device_follows_the_configuration_then_the_cluster(
    device: str, cluster: dict[str, float], chosen: str
) -> None:
    plan = make_plan(config(device=device), cluster)
    assert set(plan.devices.values()) == {chosen}
    assert f"{device!r}" in plan.reason


def test_cuda_on_a_cluster_without_gpus_is_refused() -> None:
    with pytest.raises(ValueError, match="no node of the Ray cluster has a GPU"):
        make_plan(config(device="cuda"), LAPTOP)


def test_a_stage_may_have_a_device_of_its_own() -> None:
    plan = make_plan(config(speech_decoder={"device": "cpu"}), SERVER)
    assert plan.devices == {"Talker": "cuda", "CodePredictor": "cuda", "SpeechDecoder": "cpu"}
    decoder, talker = (plan.actor_options[name] for name in ("SpeechDecoder", "Talker"))
    assert (decoder["num_gpus"], talker["num_gpus"]) == (0.0, 0.5)
    assert "CUDA_VISIBLE_DEVICES" in decoder["runtime_env"]["env_vars"]
    assert "CUDA_VISIBLE_DEVICES" not in talker["runtime_env"]["env_vars"]
    assert "SpeechDecoder 'cpu'" in plan.reason
    with pytest.raises(ValueError, match="no node of the Ray cluster has a GPU"):
        make_plan(config(device="cpu", talker={"device": "cuda"}), LAPTOP)
    with pytest.raises(ValidationError, match="application's device"):
        config(placement="fused", talker={"device": "cuda"})


@pytest.mark.parametrize("placement", ["split", "fused"])
def test_one_replica_of_everything_fits_one_gpu_exactly(placement: str) -> None:
    plan = make_plan(config(placement=placement), SERVER)
    assert sum(options["num_gpus"] for options in plan.actor_options.values()) == 1.0
    assert plan.actor_options["Ingress"]["num_gpus"] == 0


@pytest.mark.parametrize("placement", ["split", "fused"])
@pytest.mark.parametrize("cpus", [1.0, 2.0, 4.0])
def test_a_small_machine_is_never_asked_for_more_than_it_has(placement: str, cpus: float) -> None:
    plan = make_plan(config(placement=placement), {"CPU": cpus})
    reserved = [options["num_cpus"] for options in plan.actor_options.values()]
    # And has room for the next ingress beside the last one.
    assert sum(reserved) + plan.actor_options["Ingress"]["num_cpus"] < cpus
    assert min(reserved) > 0


def test_reservations_are_as_configured_where_they_fit() -> None:
    plan = make_plan(config(talker=TalkerConfig(num_cpus=3)), SERVER)
    assert plan.actor_options["Talker"]["num_cpus"] == 3


def test_on_cpu_no_share_of_a_gpu_is_reserved_and_none_is_visible() -> None:
    plan = make_plan(config(device="cpu"), SERVER)
    for options in plan.actor_options.values():
        assert options["num_gpus"] == 0
        assert options["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""


_CALL = """
import grpc
from concurrent import futures

server = grpc.server(futures.ThreadPoolExecutor(1))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
ready = grpc.channel_ready_future(grpc.insecure_channel(f"127.0.0.1:{port}"))
ready.result(timeout={wait_s})
"""


def test_replicas_on_all_nodes_reach_each_other_past_the_proxy_of_their_node() -> None:
    """Ray gives a replica the environment of its node, and this over it."""
    node = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
    for name in ("grpc_proxy", "no_grpc_proxy", "no_proxy", "https_proxy"):
        node.pop(name, None)
    command = [sys.executable, "-c", _CALL.replace("{wait_s}", "2")]
    assert subprocess.run(command, env=node, capture_output=True, check=False).returncode == 1
    plans = [
        *(make_plan(config(placement=placement), SERVER) for placement in ("split", "fused")),
        make_http_plan(HttpConfig(), SERVER),
    ]
    options = [options for plan in plans for options in plan.actor_options.values()]
    options.append(
        deployments_of(voice_encoder(config(), LAPTOP))["VoiceEncoder"].ray_actor_options
    )
    envs = {tuple(sorted(one["runtime_env"]["env_vars"].items())) for one in options}
    command = [sys.executable, "-c", _CALL.replace("{wait_s}", "30")]
    for env in envs:
        subprocess.run(command, env={**node, **dict(env)}, check=True)


def test_on_gpu_only_the_ingress_is_blind() -> None:
    plan = make_plan(config(), SERVER)
    blind = {
        name
        for name, options in plan.actor_options.items()
        if "CUDA_VISIBLE_DEVICES" in options["runtime_env"]["env_vars"]
    }
    assert blind == {"Ingress"}


def test_on_cpu_each_stage_has_one_thread() -> None:
    plan = make_plan(config(), LAPTOP)
    for name in SPLIT - {"Ingress"}:
        assert plan.actor_options[name]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("placement", "names"), [("split", SPLIT), ("fused", FUSED)])
def test_the_graph_holds_the_deployments_that_the_plan_names(
    placement: str, names: set[str]
) -> None:
    args = config(placement=placement)
    limits = deployment_options(args, 300.0, cpus=2)
    found = deployments_of(bind(args, make_plan(args, LAPTOP), limits, {}))
    assert set(found) == names - {"Ingress"}
    for name, deployment in found.items():
        options = make_plan(args, LAPTOP).actor_options[name]
        assert deployment.ray_actor_options["num_cpus"] == options["num_cpus"]
        assert deployment.max_ongoing_requests == limits[name]["max_ongoing_requests"]


@pytest.mark.parametrize("placement", ["split", "fused"])
def test_a_voice_encoder_comes_beside_the_stages_and_starts_with_nothing(placement: str) -> None:
    args = config(placement=placement, voice_encoder={"max_queued": 3, "num_threads": 4})
    limits = deployment_options(args, 300.0, cpus=2)
    beside = voice_encoder(args, LAPTOP)
    found = deployments_of(bind(args, make_plan(args, LAPTOP), limits, {}, beside))
    assert set(found) - {"VoiceEncoder"} == limits.keys() - {"Ingress"}
    encoder = found["VoiceEncoder"]
    assert encoder._deployment_config.max_queued_requests == 3
    assert encoder._deployment_config.autoscaling_config.min_replicas == 0
    assert encoder.ray_actor_options["num_cpus"] == 0
    env = encoder.ray_actor_options["runtime_env"]["env_vars"]
    assert (env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]) == ("4", "")


def test_a_voice_encoder_may_have_a_share_of_a_gpu_or_use_one_beside_others() -> None:
    for settings, share in (({}, 0), ({"num_gpus": 0.1}, 0.1), ({"device": "cpu"}, 0)):
        encoder = deployments_of(voice_encoder(config(voice_encoder=settings), SERVER))
        options = encoder["VoiceEncoder"].ray_actor_options
        assert options["num_gpus"] == share
        hidden = "CUDA_VISIBLE_DEVICES" in options["runtime_env"]["env_vars"]
        assert hidden is ("device" in settings)


def deployments_of(application: Application) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pending = [application]
    while pending:
        deployment = pending.pop()._bound_deployment
        found[deployment.name] = deployment
        pending.extend(a for a in deployment.init_args if hasattr(a, "_bound_deployment"))
    return found


@pytest.mark.parametrize("placement", ["split", "fused"])
@pytest.mark.parametrize("cpus", [1.0, 2.0, 4.0])
def test_several_applications_fit_a_small_machine(placement: str, cpus: float) -> None:
    share = _SHARE_OF_SEVERAL
    model = make_plan(config(placement=placement), {"CPU": cpus}, small_share=share, ingress=False)
    http = make_http_plan(HttpConfig(), {"CPU": cpus})
    assert "Ingress" not in model.actor_options
    assert set(http.actor_options) == {"Ingress"}
    reserved = [
        sum(options["num_cpus"] for options in plan.actor_options.values())
        for plan in (model, http)
    ]
    assert 7 * reserved[0] + reserved[1] < cpus
    assert min(reserved) > 0


def test_a_model_alone_keeps_its_routers_behind_a_front_without_a_process() -> None:
    args = config(placement="split")
    limits = deployment_options(args, 300.0, cpus=2)
    plan = make_plan(args, LAPTOP, ingress=False)
    front: Any = Front
    found = deployments_of(front.options(**OPTIONS).bind(bind(args, plan, limits, {})))
    assert set(found) == {"Front", *SPLIT} - {"Ingress"}
    # Serve refuses one of its top deployment's.
    routers = {
        name: found[name]._deployment_config.request_router_config.request_router_class
        for name in found
    }
    assert routers["SpeechDecoder"] == ROUTER != routers["Front"]
    assert OPTIONS["autoscaling_config"]["initial_replicas"] == 0


def test_a_model_alone_takes_no_settings_of_an_ingress() -> None:
    with pytest.raises(ValueError, match="ingress: max_input_chars, read_ahead_s have no effect"):
        build_model(config(ingress={"max_input_chars": 5, "read_ahead_s": 1.0}))


def test_without_configuration_the_embedded_checkpoint_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TTS_MODEL", raising=False)
    card = described(config().resolved())
    assert card.embedded
    assert card.voices
    assert Path(card.path).is_relative_to(Path(serve_app.__file__).parent)


def test_a_folder_is_served_under_its_own_name(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint()
    card = described(config(model=str(folder)))
    assert (card.name, card.path, card.embedded) == (folder.name, str(folder.resolve()), False)


def test_a_checkpoint_for_voice_cloning_says_what_it_takes(tiny_checkpoint) -> None:
    card = described(config(model=str(tiny_checkpoint("base"))))
    assert (card.voice_sources, card.speaker_vector_size) == ({"sample"}, 64)


def test_the_served_name_can_be_chosen(tiny_checkpoint: Callable[..., Path]) -> None:
    card = described(config(model=str(tiny_checkpoint()), served_model_name="voices"))
    assert card.name == "voices"


def test_shares_of_the_shipped_defaults_tile_a_gpu() -> None:
    shares = (TalkerConfig(), CodePredictorConfig(), SpeechDecoderConfig())
    assert round(sum(stage.num_gpus for stage in shares), 6) == 1.0


def nodes(number: int) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [{"Alive": True}] * number + [{"Alive": False}]


def test_files_that_no_replica_could_load_are_refused_before_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders.ray, "nodes", nodes(1))
    monkeypatch.delenv("TTS_CHECKED", raising=False)
    folder = shutil.copytree(embedded_checkpoint(), tmp_path / "voice")
    config = AppConfig(model=str(folder))
    check = builders._check_files
    check(None, config)
    weights = folder / "model.safetensors"
    os.truncate(weights, 100_000)
    with pytest.raises(ValueError, match=f"^{weights}: cannot be read as safetensors"):
        check(None, config)
    # On several nodes the weights may be elsewhere, but not broken here.
    monkeypatch.setattr(builders.ray, "nodes", nodes(2))
    with pytest.raises(ValueError, match="cannot be read"):
        check(None, config)
    weights.unlink()
    check(None, config)
    monkeypatch.setattr(builders.ray, "nodes", nodes(1))
    with pytest.raises(ValueError, match=str(weights)):
        check(None, config)
    # The launcher has just looked, and reading a large tokenizer takes its time.
    monkeypatch.setenv("TTS_CHECKED", f"/another{os.pathsep}{folder}")
    check(None, config)


def test_keys_that_no_ingress_could_use_are_refused_with_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders.ray, "nodes", nodes(1))
    monkeypatch.delenv("TTS_API_KEY", raising=False)
    missing = tmp_path / "keys.yaml"
    ingress = IngressConfig.model_validate({"access": {"keys_file": str(missing)}})
    with pytest.raises(ValueError, match=str(missing)):
        builders._check_files(ingress, None)
    monkeypatch.setattr(builders.ray, "nodes", nodes(2))
    builders._check_files(ingress, None)


def test_a_builder_says_what_is_wrong_as_one_line_with_its_key(
    capfd: pytest.CaptureFixture[str],
) -> None:
    args = {"talker": {"max_num_seqs": 0}, "plaecment": "fused"}
    for builder in (build, build_model):
        with pytest.raises(ValueError, match=r"^args\.talker\.max_num_seqs: "):
            call_user_app_builder_with_args_if_necessary(builder, args)
        said = capfd.readouterr().err.strip()
        assert said.startswith("the application does not start: args.talker.max_num_seqs: Input")
        assert said.endswith("; args.plaecment: Extra inputs are not permitted")
    with pytest.raises(ValueError, match=r"^args\.streams: "):
        call_user_app_builder_with_args_if_necessary(build_http, {"streams": "many"})
