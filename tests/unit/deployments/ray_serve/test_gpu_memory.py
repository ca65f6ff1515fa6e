"""What the GPUs' memory decides when the application is built."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app import serve_config
from serve_app.config import AppConfig
from serve_app.deployments.ray_serve.gpu_memory import here, suited
from serve_app.launch.overrides import with_models
from serve_app.models.random_checkpoint.write import write_configuration

FUSED = Path(__file__).parents[4] / "configs/serve.fused.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "1.7b"
    path.mkdir()
    write_configuration(path, size="1.7b", variant="custom_voice")
    return path


def config(**changes: Any) -> AppConfig:
    return AppConfig.model_validate({"placement": "fused", **changes})


def says(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"print({text!r})")


def test_the_smallest_gpu_of_a_machine_counts() -> None:
    assert here(says("81559\n24564\n")) == 24564 << 20
    assert here(says("[N/A]\n")) is None
    assert here(("no-such-command",)) is None
    assert here((sys.executable, "-c", "raise SystemExit(9)")) is None


def test_auto_follows_the_memory(folder: Path) -> None:
    chosen = suited(config(profile="auto"), folder, lambda: 24 << 30)
    assert chosen.talker.max_num_seqs == 64
    assert suited(config(profile="auto"), folder, lambda: 80 << 30).talker.max_num_seqs == 256


def test_what_is_stated_is_not_asked_for(folder: Path) -> None:
    def never() -> int:
        raise AssertionError

    chosen = suited(config(profile="auto", gpu_memory_gib=12.0), folder, never)
    assert chosen.talker.max_num_seqs == 16


def test_auto_without_an_answer_says_what_to_state(folder: Path) -> None:
    with pytest.raises(ValueError, match="state gpu_memory_gib"):
        suited(config(profile="auto"), folder, lambda: None)


def test_a_stated_profile_is_left_alone_and_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stated = config()
    assert suited(stated, folder, lambda: None) is stated
    assert suited(stated, folder, lambda: 80 << 30) is stated
    assert not caplog.records
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        assert suited(stated, folder, lambda: 16 << 30) is stated
    finally:
        logger.removeHandler(caplog.handler)
    assert "need about" in caplog.text
    with pytest.raises(ValueError, match="need about"):
        suited(stated, folder, lambda: 8 << 30)


@pytest.mark.parametrize("models", [2, 3])
def test_models_that_share_a_gpu_have_a_part_of_it_each_once(
    folder: Path, models: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As `--model A --model B` cuts the shares; 64 streams of one need 17 GiB."""
    named = [f"{number}={folder}" for number in range(models)]
    served = with_models(serve_config.load(FUSED), named, gpus=1)["applications"][1:]
    for application in served:
        stated = AppConfig.model_validate(application["args"])
        assert suited(stated, folder, lambda: 80 << 30) is stated
        fitted = suited(stated.model_copy(update={"profile": "auto"}), folder, lambda: 80 << 30)
        assert fitted.talker.max_num_seqs == 128
    assert all(record.levelno < logging.WARNING for record in caplog.records)
