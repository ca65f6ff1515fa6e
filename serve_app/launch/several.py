"""The applications of one Serve config file side by side: their deployments, and how they clash."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

from serve_app.config import (
    BUILDER,
    HTTP_BUILDER,
    MODEL_BUILDER,
    SHARED_WITH_STAGES,
    IngressConfig,
    LiveSettings,
)

STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "split": ("Ingress", "SpeechDecoder", "Talker", "CodePredictor"),
    "fused": ("Ingress", "Fused"),
}
# Beside the stages of a checkpoint that clones voices; where there is none, Serve says so.
VOICE_ENCODER: Final = "VoiceEncoder"
WITH_INGRESS: Final = (BUILDER, HTTP_BUILDER)
WITH_MODEL: Final = (BUILDER, MODEL_BUILDER)


def deployments_of(builder: str, args: Mapping[str, Any]) -> tuple[str, ...]:
    """The deployments that an application of ours may have."""
    if builder == HTTP_BUILDER:
        return ("Ingress",)
    ingress, *stages = (*STAGES[args.get("placement", "split")], VOICE_ENCODER)
    return (ingress, *stages) if builder == BUILDER else tuple(stages)


def served_name(args: Mapping[str, Any]) -> str:
    """The name that a model will have, as far as its application's arguments tell: the stated one,
    the hub id, or the folder's; empty for the one that the environment names, or the embedded one.
    """
    model = str(args.get("model") or "")
    path = PurePath(model)
    is_folder = model.startswith("~") or path.is_absolute() or len(path.parts) != 2
    return str(args.get("served_model_name") or (path.name if is_folder else model))


def find_clashes(applications: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line for each fault that no application has by itself."""
    ours = [a for a in applications if a.get("import_path") in (*WITH_INGRESS, MODEL_BUILDER)]
    models = [a for a in ours if a["import_path"] in WITH_MODEL]
    fronts = [a for a in ours if a["import_path"] in WITH_INGRESS]
    if models and not fronts:
        yield f"applications: none has an ingress; add one with import_path: {HTTP_BUILDER}"
    named: dict[str, str] = {}
    for application in models:
        name = served_name(application.get("args", {}))
        other = named.setdefault(name.casefold(), application["name"])
        if other != application["name"]:
            what = f"serve '{name}'" if name else "name no model"
            yield (
                f"applications: '{other}' and '{application['name']}' {what}; state another"
                " args.served_model_name"
            )
    for front in fronts:
        yield from _stray_settings(front, named)
        timeouts = _timeouts(front)
        for application in models:
            if _timeouts(application) != timeouts:
                yield (
                    f"applications: args.ingress of '{application['name']}' and '{front['name']}'"
                    f" differ in {', '.join(SHARED_WITH_STAGES)}, which have to be the same"
                )


def _stray_settings(front: Mapping[str, Any], named: Mapping[str, str]) -> Iterator[str]:
    """Live settings of models that the file does not have."""
    if "" in named:
        return  # whatever its name is
    for deployment in front.get("deployments", []):
        settings = LiveSettings.model_validate(deployment.get("user_config") or {})
        stated = [*settings.models, *filter(None, [settings.default_model])]
        for name in stated:
            if served_name({"model": name}).casefold() not in named:
                yield (
                    f"applications: user_config of '{front['name']}' names '{name}', which none"
                    f" serves; there are {', '.join(named)}"
                )


def _timeouts(application: Mapping[str, Any]) -> tuple[float, ...]:
    args = application.get("args", {})
    ingress = IngressConfig.model_validate(args.get("ingress", {}))
    return tuple(getattr(ingress, name) for name in SHARED_WITH_STAGES)
