"""What is wrong with the files that an application is started with, before it is for nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serve_app.config import BUILDER, MODEL_BUILDER, AppConfig, Environment
from serve_app.keys import key_file
from serve_app.keys.key_file import KeyFileError
from serve_app.scaling.room import left_out

# The stages of a model, as `AppConfig` calls them, by their deployments.
_STAGES: Final[Mapping[str, str]] = {
    "Talker": "talker",
    "CodePredictor": "code_predictor",
    "SpeechDecoder": "speech_decoder",
}
_ENCODER: Final = "VoiceEncoder"


def of_keys(environment: Environment, files: Iterable[str | Path | None]) -> Iterator[str]:
    """One line for the keys of the environment, and for each file of them, that cannot be used."""
    try:
        key_file.of_environment(environment.api_keys)
    except KeyFileError as error:
        yield str(error)
    stated = (environment.api_keys_file, *files)
    for file in dict.fromkeys(Path(file).expanduser() for file in stated if file):
        try:
            key_file.read(file)
        except KeyFileError as error:
            yield str(error)


def of_model(model: str, revision: str | None) -> Iterator[str]:
    """One line where `model` cannot be served, as far as files and their headers say; of a hub id
    nothing is opened or downloaded.
    """
    from serve_app.models.checkpoint.files import folder_fault
    from serve_app.models.checkpoint.locate import fault

    found = fault(model, revision)
    folder = Path(model).expanduser()
    if found is not None:
        yield f"{model}: {found}"
    elif folder.is_dir() and (broken := folder_fault(folder)) is not None:
        yield broken


def of_cards(applications: Sequence[Mapping[str, Any]], gpus: int) -> Iterator[str]:
    """One line for each deployment that asks for more replicas at least than the GPUs hold beside
    the others, whatever is put where. Without a GPU nothing takes a share of one.

    Args:
        applications: of a Serve config file that has been checked.
        gpus: how many there are.
    """
    asked = [
        (f"{deployment} of {application['name']!r}", share, least)
        for application in applications
        if gpus and application.get("import_path") in (BUILDER, MODEL_BUILDER)
        for deployment, share, least in _asked(application)
        if share and least
    ]
    missing = left_out(gpus, [share for _, share, _ in asked], [least for *_, least in asked])
    cards = "the only GPU has" if gpus == 1 else f"the {gpus} GPUs have"
    held = {
        name: (least - lost, share)
        for (name, share, least), lost in zip(asked, missing, strict=True)
    }
    for (name, share, least), lost in zip(asked, missing, strict=True):
        if lost:
            others = [
                f"{count} of {other} ({part:g})"
                for other, (count, part) in held.items()
                if other != name and count
            ]
            what = "1 replica" if least == 1 else f"{least} replicas"
            beside = f" beside {', '.join(others)}" if others else ""
            room = f"{cards} room for {held[name][0] or 'none'}{beside}"
            yield f"{name} asks for {what} of {share:g} GPU at least, and {room}"


def _asked(application: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Deployments of a model, their shares of a GPU where they are on one, and their replicas."""
    config = AppConfig.model_validate(application.get("args", {}))
    stages = {name: getattr(config, field) for name, field in _STAGES.items()}
    shares = {
        name: stage.num_gpus if (stage.device or config.device) != "cpu" else 0.0
        for name, stage in stages.items()
    }
    if config.placement == "fused":
        shares = {"Fused": round(sum(shares.values()), 4)}
    encoder = config.voice_encoder
    if (encoder.device or config.device) != "cpu":
        shares[_ENCODER] = encoder.num_gpus
    stated = {one["name"]: one for one in application.get("deployments", [])}
    for name, share in shares.items():
        fixed = stated.get(name, {}).get("num_replicas")
        scaling = stated.get(name, {}).get("autoscaling_config")
        usual = 0 if name == _ENCODER else 1
        if isinstance(fixed, int):
            yield name, share, fixed
        else:
            is_stated = isinstance(scaling, Mapping)
            yield name, share, int(scaling.get("min_replicas", 1)) if is_stated else usual
