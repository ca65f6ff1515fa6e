"""Configuration of the server under test."""

import pytest

from load_tests.servers.settings import CONFIGS, configured
from serve_app.config import AppConfig
from serve_app.serve_config import find_problems


@pytest.mark.parametrize("placement", list(CONFIGS))
def test_overrides_reach_arguments_and_deployments(placement: str) -> None:
    overrides = [
        "code_predictor.batch_sizes=[1, 256]",
        "fused:talker.max_model_len=512",
        "deployments.Ingress.max_ongoing_requests=700",
    ]
    config = configured(placement, overrides, capacity=256)
    assert not list(find_problems(config))
    application = config["applications"][0]
    args = AppConfig.model_validate(application["args"])
    assert args.placement == placement
    assert args.talker.max_num_seqs == args.speech_decoder.max_streams == 256
    assert args.code_predictor.batch_sizes == (1, 256)
    assert args.talker.max_model_len == (512 if placement == "fused" else 16384)
    deployments = {entry["name"]: entry for entry in application["deployments"]}
    assert deployments["Ingress"]["max_ongoing_requests"] == 700


def test_a_profile_is_an_argument() -> None:
    (application,) = configured("fused", [], None, "throughput")["applications"]
    assert application["args"]["profile"] == "throughput"


@pytest.mark.parametrize("override", ["talker", "deployments.Nobody.max_ongoing_requests=3"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"KEY=VALUE|Nobody"):
        configured("fused", [override], None)
