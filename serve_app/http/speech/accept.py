"""What every way in shares: from the fields of a request to a job, whatever carried them."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeVar

from serve_app.audio.output import Output
from serve_app.config import IngressConfig
from serve_app.errors import InvalidRequest, SpeechError, UnknownModel
from serve_app.http.catalog import Catalog
from serve_app.http.speech.body import SpeechBody, misspelt, parse, read_json
from serve_app.http.speech.checks import checked_format, checked_units
from serve_app.http.speech.choice import find_model
from serve_app.http.speech.joining import speak_units
from serve_app.http.speech.request import engine_request_id, ignored, to_domain
from serve_app.http.speech.voice import OfLibrary, OfRecording, OfVector, Voicing, Wanted
from serve_app.resumption import Speak
from serve_app.text.script import Unit
from serve_app.types import FinishReason, InputTokens, ModelCard, PcmChunk, SpeechRequest, Voice

T = TypeVar("T")

Transport = Literal["stream", "file", "sse", "batch", "job", "websocket", "realtime", "together"]
# From the fields of a dialect to those of `SpeechBody`.
Translate = Callable[[Mapping[str, Any]], Mapping[str, Any]]
# A body up to here is read in less than 5 ms on a slow core.
_QUICK_BYTES: Final = 2048
_MAX_BODY_BYTES: Final = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Made:
    """How much audio a job has had so far, in samples and codec frames of the model, what was read
    for it, how long its encoder took for it, and at its end why it ended.

    Each unit of a text is read with the instructions, and with the recording of its voice.
    """

    num_samples: int = 0
    num_frames: int = 0
    num_text_tokens: int = 0
    num_audio_tokens: int = 0
    encode_s: float = 0.0
    finish_reason: FinishReason | None = None

    def note(self, tokens: InputTokens | None) -> None:
        """Count what a chunk says was read."""
        if tokens is not None:
            self.num_text_tokens += tokens.text
            self.num_audio_tokens += tokens.audio


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request and what its response needs to know.

    Attributes:
        units: what of the text is spoken, one after the other.
        warning: what of the request is ignored.
        timings: filled with those of the first audio when it comes; before, with that of a voice
            that was made.
        made: filled while the audio is made.
    """

    request: SpeechRequest
    units: tuple[Unit, ...]
    card: ModelCard
    output: Output
    transport: Transport
    start_s: float
    warning: str | None = None
    timings: list[tuple[str, float]] = field(default_factory=list)
    made: Made = field(default_factory=Made)

    @property
    def labels(self) -> dict[str, str]:
        return {
            "model": self.card.name,
            "format": self.output.format,
            "transport": self.transport,
        }

    def chunks(self, speak: Speak) -> AsyncGenerator[PcmChunk, None]:
        """All the audio of the job, at the model's rate."""
        return speak_units(speak, self.request, self.units, self.card.sample_rate_hz)


@dataclass(frozen=True, slots=True)
class TextSize:
    """How long a text may be, and its units.

    Attributes:
        max_unit_frames: codec frames of a unit, by estimate; None: what one generation can hold.
    """

    max_chars: int
    max_unit_frames: float | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A job whose voice, where it is `wanted`, has still to be made."""

    job: Job
    wanted: Wanted | None


class Speech:
    """Checks what is asked for against what is served."""

    def __init__(
        self,
        catalog: Catalog,
        config: IngressConfig,
        voicing: Voicing,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._voicing = voicing
        self.clock = clock

    @property
    def default_name(self) -> str:
        """The model that answers where none is named; raises what `Catalog.default` raises."""
        return self._catalog.default.name

    def serves(self, model: str) -> bool | None:
        """As `Catalog.serves`."""
        return self._catalog.serves(model)

    @property
    def max_body_bytes(self) -> int:
        """Of a request in JSON: more where it may bring a recording along."""
        if all(card.speaker_vector_size is None for card in self._catalog.cards):
            return _MAX_BODY_BYTES
        return _MAX_BODY_BYTES + self._config.voices.max_upload_bytes * 4 // 3

    async def with_library(
        self,
        check: Callable[[], Awaitable[T]],
        errors_in: Callable[[T], Iterable[SpeechError]] = lambda found: (),
    ) -> T:
        """What `check` gives, with the voice library as it is now: once more where it misses what
        another server has just written.

        `errors_in` are the errors that it gives, of several requests in one, instead of raising.

        Raises what `check` raises.
        """
        asked_s = await self._voicing.ready()
        try:
            found = await check()
        except InvalidRequest as error:
            if not await self._voicing.found_since(asked_s, [error]):
                raise
        else:
            if not await self._voicing.found_since(asked_s, errors_in(found)):
                return found
        return await check()

    async def read(self, raw: bytes, translate: Translate, client_id: str | None) -> Checked:
        """The job of a request's JSON body, whose fields are read as `translate` says.

        What takes long is read on a thread, so that the audio of others goes on.

        Raises what `check` and `translate` raise, and InvalidRequest for what is no JSON object.
        """
        is_quick = len(raw) <= _QUICK_BYTES and b"normalization_options" not in raw

        def read_whole() -> Checked:
            return self.check(translate(read_json(raw)), client_id)

        async def read() -> Checked:
            return read_whole() if is_quick else await asyncio.to_thread(read_whole)

        return await self.with_library(read)

    async def accept(
        self,
        fields: Mapping[str, Any],
        client_id: str | None = None,
        size: TextSize | None = None,
        voice: Voice | None = None,
    ) -> Job:
        """The job that `fields` (those of `SpeechBody`) ask for, whole.

        `size` is for texts of another length than a request's, `voice` for one that is there
        already, whatever the fields say.

        Raises what `check` and `voiced` raise.
        """
        return await self.voiced(await self.checked(fields, client_id, size, voice))

    async def checked(
        self,
        fields: Mapping[str, Any],
        client_id: str | None = None,
        size: TextSize | None = None,
        voice: Voice | None = None,
    ) -> Checked:
        """`check`, on a thread, with the voice library as it is now."""
        return await self.with_library(
            lambda: asyncio.to_thread(self.check, fields, client_id, size, voice)
        )

    async def voiced(self, checked: Checked) -> Job:
        """The job with its voice, which may have to be encoded: before any stage hears of it.

        Raises what `Voicing.made` raises.
        """
        job, wanted = checked.job, checked.wanted
        if wanted is None:
            return job
        began_s = self.clock()
        voice = await self._voicing.made(wanted, job.card)
        made = replace(job, request=replace(job.request, voice=voice))
        made.timings.append(("voice", self.clock() - began_s))
        return made

    def check(
        self,
        fields: Mapping[str, Any],
        client_id: str | None = None,
        size: TextSize | None = None,
        voice: Voice | None = None,
    ) -> Checked:
        """All of a job but a voice that has to be made; a long text takes milliseconds.

        Raises:
            InvalidRequest: a field is wrong, or the model cannot do what it says.
            UnknownModel: no served model has the name.
            StageUnavailable: nothing is served yet.
        """
        start_s = self.clock()
        size = size or TextSize(self._config.max_input_chars)
        body = self._voicing.named(parse(fields))
        warnings = list(misspelt(fields))
        if self._config.accept_any_voice and not self._voicing.knows(body, self._catalog.cards):
            body = self._voicing.named(body.model_copy(update={"voice": None}))
            warnings.append("voice ignored: there is none of this name")
        card, language = self._model_of(body)
        found = voice or self._voicing.of_body(body, card)
        wanted = found if isinstance(found, OfLibrary | OfRecording | OfVector) else None
        ready = None if isinstance(found, OfLibrary | OfRecording | OfVector) else found
        request_id = engine_request_id(client_id)
        request = to_domain(body, card, size.max_chars, request_id, ready, language)
        units = checked_units(
            request.text,
            request.language,
            card,
            body.normalization_options,
            size.max_unit_frames,
        )
        warnings.extend(ignored(body, request))
        warning = "; ".join(warnings) or None
        if warning is not None:
            logger.warning("%s: %s", request.request_id, warning)
        transport: Transport = "file" if body.stream is False else "stream"
        if body.stream_format == "sse":
            transport = "sse"
        elif body.stream and (body.response_encoding or body.response_format == "raw"):
            transport = "together"
        elif body.stream and body.stream_format is None and self._config.stream_true == "sse":
            transport = "sse"
        output = Output(
            checked_format(body), card.sample_rate_hz, body.sample_rate, body.speed or 1.0
        )
        return Checked(Job(request, units, card, output, transport, start_s, warning), wanted)

    def _model_of(self, body: SpeechBody) -> tuple[ModelCard, str | None]:
        """As `find_model`, with another name than any that is served where the server allows it."""
        try:
            return find_model(body, self._catalog, self._voicing.is_stored)
        except UnknownModel:
            if not self._config.accept_any_model:
                raise
        unnamed = body.model_copy(update={"model": None})
        return find_model(unnamed, self._catalog, self._voicing.is_stored)

    async def template(
        self, fields: Mapping[str, Any], transport: Transport, client_id: str | None = None
    ) -> Job:
        """The job of text that comes later, with everything else checked; raises what `accept`
        raises.
        """
        job = await self.accept({**fields, "input": "a"}, client_id)
        return replace(job, transport=transport)
