"""Which of the served models answers a request: the one it names, else the one that can.

Without a name, or with one of OpenAI's, which mean no checkpoint:

    task_type               the first model of that task
    a recording, a voice    a model that clones (ref_audio, references, speaker_embedding, a voice
      made of one           of the library)
    a speaker               the default where it has one of that name, else the first that has
    instructions alone      a model that makes voices from descriptions
    anything else           the default

Where no model can, the default answers, and says what is wrong. "The first" is the default if it is
one of them, else in the order of `GET /v1/models`.
"""

import re
from collections.abc import Callable
from typing import Final, NoReturn

from serve_app.errors import InvalidRequest, ModelStarting
from serve_app.http.catalog import Catalog
from serve_app.http.names import TASK_NAMES, find_voice
from serve_app.http.speech.body import SpeechBody
from serve_app.http.speech.checks import stated
from serve_app.types import ModelCard, VoiceSource

_SAMPLE_FIELDS: Final = ("ref_audio", "references", "speaker_embedding")
_DEFAULT_VOICES: Final = ("", "default")

# Whether a name is that of a stored voice, made of a recording.
IsStored = Callable[[str], bool]


def find_model(
    body: SpeechBody, catalog: Catalog, is_stored: IsStored = lambda _: False
) -> tuple[ModelCard, str | None]:
    """The card of the model that answers a body, and the language in its name.

    Raises:
        UnknownModel: no served model has the name.
        InvalidRequest: the named model cannot do what is asked for; says which one can.
        ModelStarting: it is not ready yet.
        StageUnavailable: nothing is served yet.
    """
    task = re.sub(r"[^a-z]", "", body.task_type.lower()) if body.task_type else None
    need = needed(body, is_stored)
    card: ModelCard | None = None
    language: str | None = None
    if body.model and body.model.strip():
        card, language = catalog.find(body.model)
    if card is None:
        return _chosen(body, catalog, task, need), language
    if task is not None and task != _key(card):
        others = [other for other in catalog.cards if task == _key(other)]
        raise InvalidRequest(
            f"The model '{card.name}' does {TASK_NAMES[card.task]}, not '{body.task_type}'"
            f"{_hint(others, 'does')}.",
            "task_type",
        )
    _refuse(body, card, catalog, need)
    return card, language


def needed(body: SpeechBody, is_stored: IsStored) -> VoiceSource | None:
    """What the voice of a request would have to be made of; None: it says nothing of a voice."""
    voice = _voice(body)
    if any(getattr(body, field) for field in _SAMPLE_FIELDS) or (voice and is_stored(voice)):
        return "sample"
    if voice:
        return "named"
    return "description" if stated(body.instructions) is not None else None


def _chosen(
    body: SpeechBody, catalog: Catalog, task: str | None, need: VoiceSource | None
) -> ModelCard:
    default = catalog.default
    if task is not None:
        able = [card for card in catalog.cards if task == _key(card)]
        if not able:
            _refuse_task(body, catalog)
    elif need == "named":
        able = [card for card in catalog.cards if _has(card, _voice(body))]
    elif need is None:
        return default
    else:
        able = [card for card in catalog.cards if need in card.voice_sources]
    if not able and need == "sample" and catalog.coming:
        raise ModelStarting(
            f"No model that is ready clones voices; still starting: {', '.join(catalog.coming)}."
        )
    return able[0] if able else default


def _refuse_task(body: SpeechBody, catalog: Catalog) -> NoReturn:
    """Nothing that is served does the task."""
    if catalog.coming:
        raise ModelStarting(
            f"No model that is ready does '{body.task_type}'; still starting:"
            f" {', '.join(catalog.coming)}."
        )
    served = ", ".join(f"'{card.name}' ({TASK_NAMES[card.task]})" for card in catalog.cards)
    raise InvalidRequest(
        f"No model served here does '{body.task_type}'; there is {served}.", "task_type"
    )


def _refuse(body: SpeechBody, card: ModelCard, catalog: Catalog, need: VoiceSource | None) -> None:
    """Refuse what `card` cannot do and another model can; what none can, is said elsewhere."""
    others = [other for other in catalog.cards if other is not card]
    if need == "sample" and need not in card.voice_sources:
        able = [other for other in others if need in other.voice_sources]
        if able:
            raise InvalidRequest(
                f"The model '{card.name}' does not clone voices{_hint(able, 'does')}.", "model"
            )
    elif need == "description" and not {"named", "description"} & card.voice_sources:
        able = [other for other in others if need in other.voice_sources]
        if able:
            raise InvalidRequest(
                f"The model '{card.name}' makes no voices from descriptions{_hint(able, 'does')}.",
                "model",
            )
    elif need == "named" and not _has(card, _voice(body)):
        # A designed voice has no name, and OpenAI's clients cannot leave it out.
        is_described = "description" in card.voice_sources and stated(body.instructions) is not None
        able = [other for other in others if _has(other, _voice(body))]
        if able and not is_described:
            raise InvalidRequest(
                f"The model '{card.name}' has no voice '{body.voice}'{_hint(able, 'has')}.",
                "voice",
                "voice_not_found",
            )


def _has(card: ModelCard, voice: str) -> bool:
    return "named" in card.voice_sources and find_voice(voice, card) is not None


def _voice(body: SpeechBody) -> str:
    voice = (body.voice or "").strip()
    return "" if voice.casefold() in _DEFAULT_VOICES else voice


def _hint(able: list[ModelCard], verb: str) -> str:
    if not able:
        return ""
    names = " and ".join(f"'{card.name}'" for card in able)
    return f"; {names} {verb if len(able) == 1 else {'does': 'do', 'has': 'have'}[verb]}"


def _key(card: ModelCard) -> str:
    return card.task.replace("_", "")
