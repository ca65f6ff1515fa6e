"""What a config file asks for at least, and no GPU holds."""

from typing import Any

import pytest

from serve_app.check import faults
from serve_app.config import BUILDER, HTTP_BUILDER, MODEL_BUILDER


def scaling(least: int) -> dict[str, Any]:
    return {"autoscaling_config": {"min_replicas": least, "target_ongoing_requests": 8}}


def application(
    name: str = "tts", builder: str = BUILDER, deployments: Any = None, **args: Any
) -> dict[str, Any]:
    stated = [{"name": name, **options} for name, options in (deployments or {}).items()]
    return {"name": name, "import_path": builder, "args": args, "deployments": stated}


LARGE = {"talker": {"num_gpus": 0.6}, "code_predictor": {"num_gpus": 0}, "speech_decoder": {}}
FUSED = {"placement": "fused", "talker": {"num_gpus": 0.1}}


@pytest.mark.parametrize(
    ("applications", "gpus", "said"),
    [
        ([application()], 1, []),
        # On a CPU nothing takes a share of a GPU.
        ([application(deployments={"Talker": scaling(3)})], 0, []),
        ([application(device="cpu", deployments={"Talker": scaling(3)})], 1, []),
        (
            [application(deployments={"Talker": scaling(3)}, **LARGE)],
            2,
            [
                "Talker of 'tts' asks for 3 replicas of 0.6 GPU at least, and the 2 GPUs have room"
                " for 2 beside 1 of SpeechDecoder of 'tts' (0.3)"
            ],
        ),
        (
            [application(placement="fused", deployments={"Fused": {"num_replicas": 2}})],
            1,
            [
                "Fused of 'tts' asks for 2 replicas of 1 GPU at least, and the only GPU has room"
                " for 1"
            ],
        ),
        # Two models with a whole GPU each.
        (
            [
                {"name": "front", "import_path": HTTP_BUILDER, "args": {}},
                application("a", MODEL_BUILDER, placement="fused"),
                application("b", MODEL_BUILDER, placement="fused"),
                {"name": "somebody", "import_path": "elsewhere:app"},
            ],
            1,
            [
                "Fused of 'b' asks for 1 replica of 1 GPU at least, and the only GPU has room for"
                " none beside 1 of Fused of 'a' (1)"
            ],
        ),
        # One of them may sleep.
        (
            [
                application("a", MODEL_BUILDER, placement="fused"),
                application("b", MODEL_BUILDER, {"Fused": scaling(0)}, placement="fused"),
            ],
            1,
            [],
        ),
        ([application(deployments={"Fused": scaling(4)}, **FUSED)], 2, ["room for 2"]),
        # A stage of its own device, and an encoder that waits for recordings.
        (
            [
                application(
                    code_predictor={"device": "cpu"},
                    voice_encoder={"num_gpus": 0.5},
                    deployments={"CodePredictor": scaling(9)},
                )
            ],
            1,
            [],
        ),
        (
            [
                application(
                    voice_encoder={"num_gpus": 0.5}, deployments={"VoiceEncoder": scaling(1)}
                )
            ],
            1,
            [
                "none beside 1 of Talker of 'tts' (0.5), 1 of VoiceEncoder of 'tts' (0.5)",
                "SpeechDecoder of 'tts' asks for 1 replica of 0.3 GPU",
            ],
        ),
    ],
)
def test_more_than_the_cards_hold_is_said_with_numbers(
    applications: list[dict[str, Any]], gpus: int, said: list[str]
) -> None:
    found = list(faults.of_cards(applications, gpus))
    assert len(found) == len(said), found
    assert all(part in line for part, line in zip(said, found, strict=True)), found
