"""What is served: the catalog that requests are checked against, and its lists for clients."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from serve_app.errors import StageUnavailable, UnknownModel
from serve_app.http.names import TASK_NAMES, alias_names, alias_target, find_spoken
from serve_app.types import ModelCard


class Catalog:
    """The cards of what is served; it grows as applications come up."""

    def __init__(self, cards: Iterable[ModelCard] = ()) -> None:
        self._cards = {card.name: card for card in cards}

    def add(self, card: ModelCard) -> None:
        """Serve a model from now on, or know it better."""
        self._cards[card.name] = card

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """All of them, the default first."""
        return tuple(self._cards.values())

    @property
    def default(self) -> ModelCard:
        """What answers a request that names no model.

        Raises:
            StageUnavailable: nothing is served yet.
        """
        for card in self._cards.values():
            return card
        raise StageUnavailable("no model is served yet")

    def get(self, name: str) -> ModelCard:
        """The card of any name that a client may have for a model; raises what `find` raises."""
        return self.find(name)[0]

    def find(self, name: str) -> tuple[ModelCard, str | None]:
        """The card of any name that a client may have for a model, and the language in that name.

        Raises:
            UnknownModel: none has it.
            StageUnavailable: nothing is served yet.
        """
        default = self.default
        card, language = find_spoken(name, self.cards, default)
        if card is None:
            served = ", ".join(self._cards)
            raise UnknownModel(
                f"The model '{name}' does not exist. Served here: {served}.",
                "model",
                "model_not_found",
            )
        return card, language


def add_routes(app: FastAPI, catalog: Catalog) -> None:
    """The lists of models and voices."""
    created = int(time.time())

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        models = [model_object(card, created) for card in catalog.cards]
        return {"object": "list", "data": models}

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        return model_object(catalog.get(model_id), created)

    @app.get("/v1/audio/models")
    async def list_audio_models() -> dict[str, Any]:
        return {"models": [{"id": card.name, "name": card.name} for card in catalog.cards]}

    @app.get("/v1/audio/voices")
    async def list_voices(legacy: bool = False) -> Mapping[str, Any]:
        return voices_body(catalog.cards, created, legacy)


def model_object(card: ModelCard, created: int) -> dict[str, Any]:
    """One entry of `GET /v1/models`; the fields after `owned_by` are extensions."""
    return {
        "id": card.name,
        "object": "model",
        "created": created,
        "owned_by": "qwen",
        "task": "text-to-speech",
        "task_type": TASK_NAMES[card.task],
        "sample_rate": card.sample_rate_hz,
        "supports_instructions": card.supports_instructions,
        "languages": list(card.languages),
        "voices": [voice_object(name, card, created) for name in card.voices],
    }


def voice_object(
    name: str, card: ModelCard, created: int, alias_of: str | None = None
) -> dict[str, Any]:
    language = card.voice_languages.get(alias_of or name)
    return {
        "id": name,
        "name": name,
        "object": "audio.voice",
        "created_at": created,
        "type": "builtin" if alias_of is None else "alias",
        "language": language,
        "languages": [known for known in card.languages if known != "auto"],
        "gender": None,
        "description": None,
        "alias_of": alias_of,
        "preview_url": None,
        "model": card.name,
    }


def voices_body(cards: Sequence[ModelCard], created: int, legacy: bool) -> Mapping[str, Any]:
    """`GET /v1/audio/voices`: one body that each kind of client finds its own list in.

    Speakers come before OpenAI's names; a name that several models have is listed once, for the
    first of them. `legacy` gives bare names.
    """
    voices: dict[str, dict[str, Any]] = {}
    for card in cards:
        for name in card.voices:
            voices.setdefault(name.casefold(), voice_object(name, card, created))
    for card in cards:
        for name in alias_names(card):
            target = alias_target(name, card)
            if target is not None:
                voices.setdefault(name, voice_object(name, card, created, target))
    entries = list(voices.values())
    if legacy:
        return {"voices": [entry["name"] for entry in entries]}
    return {
        "object": "list",
        "data": entries,
        "voices": entries,
        "uploaded_voices": [],
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
        "has_more": False,
    }
