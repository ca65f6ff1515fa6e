"""Profiles overlay the defaults of the typed configuration."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from serve_app import serve_config
from serve_app.config import PROFILES, AppConfig, TalkerConfig
from serve_app.launch import overrides

FILES = ("configs/serve.yaml", "configs/serve.fused.yaml")


def test_balanced_is_the_defaults() -> None:
    assert AppConfig(profile="balanced").talker == TalkerConfig()
    assert AppConfig() == AppConfig(profile="balanced")


def test_a_profile_changes_defaults_only() -> None:
    throughput = AppConfig.model_validate({"profile": "throughput"})
    assert throughput.talker.max_num_seqs == 256
    assert not throughput.talker.late_scheduling
    assert throughput.talker.max_model_len == TalkerConfig().max_model_len
    stated = AppConfig.model_validate({"profile": "throughput", "talker": {"max_num_seqs": 100}})
    assert stated.talker.max_num_seqs == 100
    assert stated.speech_decoder == throughput.speech_decoder
    given = AppConfig(profile="throughput", talker=TalkerConfig(max_model_len=512))
    assert (given.talker.max_model_len, given.talker.max_num_seqs) == (512, 256)


def test_deterministic_reaches_the_stages_that_make_codes_with_any_profile() -> None:
    config = AppConfig.model_validate({"profile": "throughput", "deterministic": True})
    assert config.talker.deterministic
    assert config.code_predictor.deterministic
    assert config.talker.max_num_seqs == 256
    assert not AppConfig().talker.deterministic
    stated = {"deterministic": True, "talker": {"deterministic": False}}
    assert not AppConfig.model_validate(stated).talker.deterministic


def test_profiles_have_different_hashes() -> None:
    assert len({AppConfig.model_validate({"profile": name}).digest for name in PROFILES}) == 3


def test_the_log_has_the_configuration_and_no_secret_of_a_storage() -> None:
    options = {"key": "somebody", "secret": "something"}
    voices = {"path": "s3://bucket/voices", "storage_options": options}
    shown = AppConfig.model_validate({"ingress": {"voices": voices}}).shown()
    assert json.loads(shown)["ingress"]["voices"]["path"] == "s3://bucket/voices"
    assert not any(word in shown for word in options.values())


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ValidationError, match="profile"):
        AppConfig.model_validate({"profile": "fastest"})


@pytest.mark.parametrize("profile", PROFILES)
def test_every_stage_holds_the_streams_of_the_one_before(profile: str) -> None:
    config = AppConfig.model_validate({"profile": profile})
    assert config.speech_decoder.max_streams >= config.talker.max_num_seqs
    assert max(config.code_predictor.batch_sizes) >= config.talker.max_num_seqs


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("file", FILES)
def test_the_launcher_sets_the_profile(file: str, profile: str) -> None:
    config = overrides.with_profile(serve_config.load(file), profile)
    assert list(serve_config.find_problems(config)) == []
    (application,) = config["applications"]
    assert AppConfig.model_validate(application["args"]).profile == profile
    assert yaml.safe_load(yaml.safe_dump(config)) is not None


def test_limits_below_the_streams_are_a_fault() -> None:
    config = serve_config.load(FILES[1])
    application = config["applications"][0]
    application["args"]["profile"] = "throughput"
    application["deployments"][1]["max_ongoing_requests"] = 128
    (problem,) = serve_config.find_problems(config)
    assert "max_ongoing_requests: 128 is less than the 256 streams" in problem


def test_half_an_autoscaling_config_is_a_fault() -> None:
    config = serve_config.load(FILES[1])
    config["applications"][0]["deployments"][1]["autoscaling_config"] = {"min_replicas": 2}
    (problem,) = serve_config.find_problems(config)
    assert "Fused.autoscaling_config: lacks target_ongoing_requests" in problem


@pytest.mark.parametrize("file", FILES)
def test_a_connection_is_kept_for_longer_than_clients_keep_theirs(file: str) -> None:
    """Else a client sends into a connection that is being closed; OpenAI's keeps it for 120 s."""
    shipped = yaml.safe_load(Path(file).read_text())
    assert shipped["http_options"]["keep_alive_timeout_s"] > 120
