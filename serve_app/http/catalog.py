"""What is served: the catalog that requests are checked against, and its lists for clients."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from serve_app.errors import ModelStarting, StageUnavailable, UnknownModel
from serve_app.http.names import (
    TASK_NAMES,
    alias_names,
    alias_target,
    find_card,
    known_as,
    stands_for_any,
)
from serve_app.text.languages import split_model_name
from serve_app.types import ModelCard


class Catalog:
    """The cards of what is served; it grows and shrinks as applications come and go."""

    def __init__(self, cards: Iterable[ModelCard] = ()) -> None:
        self._cards: tuple[ModelCard, ...] = ()
        self._ranks: dict[str, tuple[Any, ...]] = {}
        self._coming: Mapping[str, frozenset[str]] = {}
        self._unnamed = False
        self._preferred: str | None = None
        for card in cards:
            self.add(card)

    def add(self, card: ModelCard, rank: tuple[Any, ...] = ()) -> None:
        """Serve a model from now on, or know it better.

        Of several with the lowest rank, the one that was added first is the default.
        """
        others = [known for known in self._cards if known.name != card.name]
        self._ranks[card.name] = rank
        self._order([*others, card])

    def remove(self, name: str) -> None:
        """Serve a model no longer."""
        self._order([card for card in self._cards if card.name != name])

    def prefer(self, name: str | None) -> None:
        """Make a model the default, now or when it comes; None: the one that comes first."""
        self._preferred = None if name is None else name.strip().casefold()
        self._order(self._cards)

    def expect(self, names: Mapping[str, frozenset[str]], unnamed: bool = False) -> None:
        """Know the models that are starting: what each is called in a message, and its names in
        lower case; `unnamed`: one of them may have another name when it is there.
        """
        self._coming = dict(names)
        self._unnamed = unnamed

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """All of them, the default first."""
        return self._cards

    @property
    def coming(self) -> tuple[str, ...]:
        """The models that are starting."""
        return tuple(self._coming)

    @property
    def default(self) -> ModelCard:
        """What answers a request that names no model.

        Raises:
            StageUnavailable: nothing is served yet.
        """
        for card in self._cards:
            return card
        if self._coming:
            raise ModelStarting(_starting(self.coming))
        raise StageUnavailable("no model is served yet")

    def serves(self, name: str) -> bool | None:
        """Whether a model is served, by its served name; None: nobody can say so yet, since it, or
        one that may be it, is starting or has failed to start.
        """
        if any(card.name == name for card in self._cards):
            return True
        may_come = any(name.casefold() in names for names in self._coming.values())
        return None if may_come or self._unnamed or not self._cards else False

    def get(self, name: str) -> ModelCard:
        """The card of any name that a client may have for a model; raises what `find` raises."""
        card, _ = self.find(name)
        return card or self.default

    def find(self, name: str) -> tuple[ModelCard | None, str | None]:
        """The card of a model's name, and the language in that name; no card where it is one of
        OpenAI's names, which leave the choice to the server.

        Raises:
            UnknownModel: none has it.
            ModelStarting: it is not ready yet.
            StageUnavailable: nothing is served yet.
        """
        model, language = split_model_name(name)
        card = find_card(name, self._cards)
        if card is not None:
            return card, None
        card = find_card(model, self._cards)
        if card is not None or stands_for_any(name):
            return card, language
        known = {name.strip().casefold(), model.strip().casefold()}
        for coming, names in self._coming.items():
            if known & names:
                raise ModelStarting(_starting((coming,)))
        if not self._cards and not self._coming:
            raise StageUnavailable("no model is served yet")
        served = ", ".join(card.name for card in self._cards) or "none yet"
        also = f"; starting: {', '.join(self._coming)}" if self._coming else ""
        raise UnknownModel(
            f"The model '{name}' does not exist. Served here: {served}{also}.",
            "model",
            "model_not_found",
        )

    def _order(self, cards: Iterable[ModelCard]) -> None:
        def place(card: ModelCard) -> tuple[Any, ...]:
            is_preferred = self._preferred in known_as(card.name, card.path)
            return (not is_preferred, self._ranks[card.name])

        self._cards = tuple(sorted(cards, key=place))


def _starting(names: Sequence[str]) -> str:
    """For clients: which models they have to wait for."""
    verb = "is" if len(names) == 1 else "are"
    listed = ", ".join(f"'{name}'" for name in names)
    return f"{listed} {verb} still starting. Please try again."


def add_routes(app: FastAPI, catalog: Catalog) -> None:
    """The lists of models, also without OpenAI's prefix; `http/voices` has that of voices."""
    created = int(time.time())

    @app.get("/v1/models")
    @app.get("/models", include_in_schema=False)
    async def list_models() -> dict[str, Any]:
        models = [model_object(card, created) for card in catalog.cards]
        return {"object": "list", "data": models}

    @app.get("/v1/models/{model_id:path}")
    @app.get("/models/{model_id:path}", include_in_schema=False)
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        return model_object(catalog.get(model_id), created)

    @app.get("/v1/audio/models")
    @app.get("/audio/models", include_in_schema=False)
    async def list_audio_models() -> dict[str, Any]:
        return {"models": [{"id": card.name, "name": card.name} for card in catalog.cards]}


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
