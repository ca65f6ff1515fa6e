"""Limits follow from the configuration: what a stage holds, when it scales, how long it drains."""

import pytest

from serve_app import serve_config
from serve_app.config import PROFILES, AppConfig
from serve_app.deployments.limits import deployment_options, ingresses

# 8,192 frames at 12.5 Hz, the limit of the released checkpoints.
LONGEST_S = 655.36
FILES = {"split": "configs/serve.yaml", "fused": "configs/serve.fused.yaml"}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("placement", ["split", "fused"])
def test_every_deployment_scales_before_it_is_full_and_lets_the_next_ones_wait(
    placement: str, profile: str
) -> None:
    config = AppConfig.model_validate({"placement": placement, "profile": profile})
    limits = deployment_options(config, LONGEST_S, cpus=16)
    assert tuple(limits) == serve_config.STAGES[placement]
    for options in limits.values():
        target = options["autoscaling_config"]["target_ongoing_requests"]
        assert target < options["max_ongoing_requests"]
    for name in {"Talker", "Fused"} & limits.keys():
        streams, options = config.talker.max_num_seqs, limits[name]
        target = options["autoscaling_config"]["target_ongoing_requests"]
        assert target < streams < options["max_ongoing_requests"]
    starts = {"latency": 2, "balanced": 3, "throughput": 8}
    assert limits["Ingress"]["autoscaling_config"]["min_replicas"] == starts[profile]


def test_what_is_stated_in_the_arguments_counts() -> None:
    config = AppConfig.model_validate({"placement": "fused", "talker": {"max_num_seqs": 100}})
    fused = deployment_options(config, LONGEST_S, cpus=16)["Fused"]
    assert fused["max_ongoing_requests"] == 200
    assert fused["autoscaling_config"]["target_ongoing_requests"] == 75


@pytest.mark.parametrize("placement", FILES)
def test_a_drain_outlasts_the_longest_speech_at_each_stage_and_at_haproxy(placement: str) -> None:
    limits = deployment_options(AppConfig(placement=placement), LONGEST_S, cpus=2)
    drains_s = [options["graceful_shutdown_timeout_s"] for options in limits.values()]
    assert drains_s[0] > LONGEST_S
    assert drains_s == sorted(set(drains_s))
    env = serve_config.load(FILES[placement])["controller_options"]["runtime_env"]["env_vars"]
    assert float(env["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > drains_s[-1]


def test_a_small_machine_is_asked_for_one_ingress() -> None:
    assert ingresses(256, cpus=2) == 1
    assert [ingresses(streams, cpus=8) for streams in (1, 24, 25, 64, 256)] == [1, 1, 2, 3, 4]
    assert [ingresses(streams, cpus=32) for streams in (1, 24, 25, 64, 256)] == [1, 1, 2, 3, 8]
