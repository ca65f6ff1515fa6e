"""Several models in one config file: from the command line, and what cannot stand side by side."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app import serve_config
from serve_app.launch import overrides, settings
from serve_app.serve_config import ServeConfigError, find_problems

CONFIGS = Path(__file__).parents[3] / "configs"
DESIGN = "Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign"


def shipped(name: str = "serve.several.yaml") -> dict[str, Any]:
    return copy.deepcopy(serve_config.load(CONFIGS / name))


def by_name(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {application["name"]: application for application in config["applications"]}


@pytest.mark.parametrize("name", ["serve.yaml", "serve.fused.yaml"])
def test_several_models_become_applications_beside_one_for_the_ingress(
    name: str, tmp_path: Path
) -> None:
    base = shipped(name)
    base["applications"][0]["args"]["ingress"] = {"chunk_timeout_s": 5.0, "read_ahead_s": 30.0}
    config = overrides.with_models(base, [str(tmp_path), f"designer={DESIGN}"], gpus=0)
    assert list(find_problems(config)) == []
    front, first, second = config["applications"]
    assert (front["name"], front["route_prefix"]) == ("tts", "/")
    assert front["args"] == {"ingress": {"chunk_timeout_s": 5.0, "read_ahead_s": 30.0}}
    assert [d["name"] for d in front["deployments"]] == ["Ingress"]
    assert front["deployments"][0]["user_config"] == {"default_model": str(tmp_path)}
    assert first["args"]["model"] == str(tmp_path)
    assert second["name"] == "designer"
    assert (second["args"]["model"], second["args"]["served_model_name"]) == (DESIGN, "designer")
    for model in (first, second):
        assert model["route_prefix"] is None
        assert model["args"]["ingress"] == {"chunk_timeout_s": 5.0}
        assert "Ingress" not in [d["name"] for d in model["deployments"]]
        assert model["args"]["placement"] == base["applications"][0]["args"]["placement"]


def test_one_model_leaves_one_application(tmp_path: Path) -> None:
    base = shipped("serve.yaml")
    config = overrides.with_models(base, [str(tmp_path)])
    (application,) = config["applications"]
    assert application == {
        **base["applications"][0],
        "args": {**base["applications"][0]["args"], "model": str(tmp_path)},
    }


@pytest.mark.parametrize(("gpus", "whole"), [(0, 1.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (8, 1.0)])
def test_more_models_than_gpus_share_them(gpus: int, whole: float) -> None:
    models = ["a=/x/a", "b=/x/b", "c=/x/c"]
    config = overrides.with_models(shipped("serve.fused.yaml"), models, gpus)
    for application in config["applications"][1:]:
        stages = ("talker", "code_predictor", "speech_decoder")
        share = sum(application["args"][stage]["num_gpus"] for stage in stages)
        assert share <= whole + 1e-9
        assert share == pytest.approx(whole, abs=0.01)


def test_models_of_one_folder_name_get_applications_of_their_own() -> None:
    models = ["one=/x/voices", "/y/voices", DESIGN]
    config = overrides.with_models(shipped("serve.yaml"), models)
    names = ["tts", "one", "voices", "qwen3-tts-12hz-1-7b-voicedesign"]
    assert list(by_name(config)) == names
    with_one_name = overrides.with_models(shipped("serve.yaml"), ["/x/tts", "/y/tts"])
    assert list(by_name(with_one_name)) == ["tts", "tts-2", "tts-3"]
    (problem,) = find_problems(with_one_name)
    assert "'tts-2' and 'tts-3' serve 'tts'" in problem


@pytest.mark.parametrize("model", ["", "=x", "x="])
def test_a_model_that_is_none_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match="MODEL"):
        overrides.with_models(shipped("serve.yaml"), [model])


def test_models_are_stated_once() -> None:
    with pytest.raises(ValueError, match="models of its own"):
        overrides.with_models(shipped(), ["/x/a"])
    config = shipped("serve.yaml")
    config["applications"][0]["args"]["model"] = "/x/b"
    with pytest.raises(ValueError, match="models of its own"):
        overrides.with_models(config, ["/x/a", "/x/c"])


def stray(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][0]["user_config"]["default_model"] = "nobody"


def wrong_live(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][0]["user_config"] = {"defaultmodel": "x"}


def live_of_a_stage(config: dict[str, Any]) -> None:
    config["applications"][1]["deployments"][0]["user_config"] = {"log_level": "INFO"}


def prefixed(config: dict[str, Any]) -> None:
    config["applications"][1]["route_prefix"] = "/voices"


def with_ingress_settings(config: dict[str, Any]) -> None:
    config["applications"][1]["args"]["ingress"] = {"max_input_chars": 5}


def other_timeouts(config: dict[str, Any]) -> None:
    config["applications"][1]["args"]["ingress"] = {"chunk_timeout_s": 5}


def same_name(config: dict[str, Any]) -> None:
    name = config["applications"][1]["args"]["model"]
    config["applications"][2]["args"]["served_model_name"] = name.upper()


def without_names(config: dict[str, Any]) -> None:
    for application in config["applications"][1:]:
        del application["args"]["model"]


def without_front(config: dict[str, Any]) -> None:
    del config["applications"][0]


def foreign_deployment(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"].append({"name": "Fused"})


def model_in_front(config: dict[str, Any]) -> None:
    config["applications"][0]["args"]["model"] = "/x/a"


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (stray, "names 'nobody', which none serves; there are qwen/"),
        (wrong_live, "deployments.Ingress.user_config.defaultmodel: "),
        (live_of_a_stage, "deployments.Fused.user_config: only the ingress"),
        (prefixed, "route_prefix: has to be null"),
        (with_ingress_settings, "args.ingress.max_input_chars: has no effect"),
        (other_timeouts, "'custom-voice' and 'tts' differ in first_audio_timeout_s"),
        (same_name, "'custom-voice' and 'voice-design' serve"),
        (without_names, "'custom-voice' and 'voice-design' name no model"),
        (without_front, "none has an ingress"),
        (foreign_deployment, "no deployment 'Fused' here; there are Ingress"),
        (model_in_front, "args.model: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_side_by_side_is_reported(change: Any, reported: str) -> None:
    config = shipped()
    change(config)
    problems = list(find_problems(config))
    assert any(reported in problem for problem in problems), problems


def test_a_model_may_stand_beside_an_application_that_has_one(tmp_path: Path) -> None:
    config = shipped("serve.yaml")
    config["applications"].append(shipped()["applications"][2])
    assert list(find_problems(config)) == []


def test_the_command_line_is_read_whole() -> None:
    start = settings.parse(["--model", "a", "c.yaml", "--model=b=/x", "--print-config"], "d.yaml")
    assert start == settings.Start("c.yaml", ("a", "b=/x"), only_print=True)
    assert settings.parse([], "d.yaml") == settings.Start("d.yaml")
    start = settings.parse(["--host=0.0.0.0", "--port", "81", "--profile", "auto"], "d.yaml")
    assert start == settings.Start("d.yaml", host="0.0.0.0", port=81, profile="auto")
    for wrong, said in (
        (["--model"], "--model"),
        (["--models", "a"], "--models"),
        (["a.yaml", "b.yaml"], "b.yaml"),
        (["-x"], "-x"),
        (["--port", "http"], "http"),
    ):
        with pytest.raises(ValueError, match=said):
            settings.parse(wrong, "d.yaml")


def test_environment_and_command_line_are_applied_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PORT", "9001"), ("PROFILE", "latency"), ("TTS_MODEL", "/x/env")):
        monkeypatch.setenv(name, value)
    config = settings.Start(str(CONFIGS / "serve.yaml")).settings()
    assert config["http_options"]["port"] == 9001
    over = settings.Start(str(CONFIGS / "serve.yaml"), port=9002, profile="throughput").settings()
    assert over["http_options"]["port"] == 9002
    assert over["applications"][0]["args"]["profile"] == "throughput"
    assert config["applications"][0]["args"]["model"] == "/x/env"
    several = settings.Start(str(CONFIGS / "serve.yaml"), ("/x/a", "/x/b")).settings()
    assert [a["args"].get("model") for a in several["applications"]] == [None, "/x/a", "/x/b"]
    assert [a["args"].get("profile") for a in several["applications"]] == [
        None,
        "latency",
        "latency",
    ]
    with pytest.raises(ServeConfigError, match="serve 'a'"):
        settings.Start(str(CONFIGS / "serve.yaml"), ("/x/a", "/y/a")).settings()
    path = tmp_path / "serve.yaml"
    theirs = {"name": "theirs", "import_path": "theirs:app"}
    path.write_text(yaml.safe_dump({"applications": [theirs]}))
    with pytest.raises(ValueError, match="models of its own"):
        settings.Start(str(path), ("/x/a",)).settings()
