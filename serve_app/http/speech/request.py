"""From a body to the request that the stages see.

`to_domain` is the second of two gates, both of which answer 400 with the name of the field: types
and ranges are checked in `body`, here what the served models can do. Past them a request is
valid by construction.
"""

import re
import secrets
import uuid
from collections.abc import Iterator
from typing import Final

from serve_app.errors import InvalidRequest
from serve_app.http.names import find_language
from serve_app.http.observe.record import current
from serve_app.http.speech.body import MAX_SEED, SpeechBody
from serve_app.http.speech.checks import (
    check_tokens,
    checked_instructions,
    checked_text,
    refuse_unavailable,
    stated,
)
from serve_app.types import ModelCard, SamplingOverrides, SpeechRequest, Voice

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def to_domain(
    body: SpeechBody,
    card: ModelCard,
    max_chars: int,
    request_id: str,
    voice: Voice | None,
    language: str | None = None,
) -> SpeechRequest:
    """Turn a body into the request that the stages see; `language` is for one that names none.

    `max_chars` limits its text. `voice` is the body's, or None where it has still to be made.

    Raises:
        InvalidRequest: the model cannot do what the body asks for.
    """
    refuse_unavailable(body, card)
    instructions = checked_instructions(body, card)
    talker, subtalker = _sampling(body)
    check_tokens(body, card)
    return SpeechRequest(
        request_id=request_id,
        model=card.name,
        text=checked_text(body.input, card, max_chars),
        voice=voice,
        language=_language(body.language or language, card),
        seed=secrets.randbelow(MAX_SEED) if body.seed is None else body.seed,
        instructions=instructions,
        streaming_text=_streams_text(body, card),
        talker=talker,
        subtalker=subtalker,
        min_new_tokens=body.min_new_tokens,
        max_new_tokens=body.max_new_tokens,
        priority=current().priority,
    )


def _streams_text(body: SpeechBody, card: ModelCard) -> bool:
    """As the Qwen3-TTS package does by itself: text goes in beside the frames of a clone alone."""
    if body.non_streaming_mode is not None:
        return not body.non_streaming_mode
    return card.task == "base"


def ignored(body: SpeechBody, request: SpeechRequest) -> Iterator[str]:
    """Say what the model does not act on, for the `X-Warning` header."""
    if stated(body.instructions) is not None and request.instructions is None:
        yield "instructions ignored: this model does not follow instructions"


def engine_request_id(client_id: str | None) -> str:
    """The client's id where it is well-formed, else a new one, with a suffix that makes it unique.

    Two requests of one client may carry one id; in an engine they must not meet.
    """
    valid = client_id is not None and _REQUEST_ID.fullmatch(client_id)
    return f"{client_id if valid else uuid.uuid4().hex}-{secrets.token_hex(4)}"


def _language(name: str | None, card: ModelCard) -> str:
    language = find_language(name, card)
    if language is None:
        languages = ", ".join(["auto", *(known for known in card.languages if known != "auto")])
        raise InvalidRequest(
            f"The language '{name}' is not supported by '{card.name}'. Supported: {languages}.",
            "language",
        )
    return language


def _sampling(body: SpeechBody) -> tuple[SamplingOverrides, SamplingOverrides]:
    """The overrides of the talker and of the code predictor.

    Greedy means both, unless the request says something of its own for the code predictor.
    """
    temperature = 0.0 if body.do_sample is False else body.temperature
    talker = SamplingOverrides(temperature, body.top_k, body.top_p, body.repetition_penalty)
    own = (body.subtalker_temperature, body.subtalker_top_k, body.subtalker_top_p)
    sub_temperature = body.subtalker_temperature
    follows = body.subtalker_dosample is None and own == (None, None, None)
    if body.subtalker_dosample is False or (follows and temperature == 0):
        sub_temperature = 0.0
    subtalker = SamplingOverrides(sub_temperature, body.subtalker_top_k, body.subtalker_top_p)
    return talker, subtalker
