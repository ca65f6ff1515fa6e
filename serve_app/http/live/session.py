"""`WS /v1/audio/speech/stream`: text in pieces in, audio out, in vllm-omni's protocol.

    client                                      server
    session.config {a request's fields}
    input.text {text} *                         audio.start, binary frames, audio.done *
    input.done                                  session.done

`session.done` ends an utterance and not the connection. Beyond vllm-omni's: `input.flush` speaks
what has come of a sentence, `input.cancel` drops what is spoken and what waits at any time,
`audio_transport: "base64"` sends audio as `audio.chunk`.
"""

import asyncio
import base64
import logging
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import WebSocket

from serve_app import metrics
from serve_app.config import IngressConfig
from serve_app.errors import InvalidRequest, SpeechError
from serve_app.http.draining.drain import Drain
from serve_app.http.errors import error_response
from serve_app.http.live.connection import (
    POLICY,
    Connection,
    SessionEnd,
    converse,
    error_object,
    leave,
)
from serve_app.http.live.turns import Turns
from serve_app.http.live.utterance import Utterance
from serve_app.http.live.writer import Event, LiveWriter, UnitAudio, UnitBegun
from serve_app.http.response import CLIENT_GONE, ClientGone, ReaderStalled
from serve_app.http.speech.accept import Job, Speech
from serve_app.text.incremental import Granularity

MAX_CONFIG_CHARS: Final = 4 << 20
MAX_TEXT_CHARS: Final = 128 << 10
_KINDS: Final = (
    *("session.config", "input.text", "input.flush", "input.done", "input.cancel"),
    "session.close",
)
# Utterances whose text has come, one of them being spoken.
_MAX_UTTERANCES: Final = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a `session.config` asks for."""

    job: Job
    granularity: Granularity
    options: Any
    whole_units: bool
    base64: bool


async def read_settings(message: dict[str, Any], speech: Speech, client_id: str | None) -> Settings:
    """Check a `session.config`; raises what `Speech.template` raises."""
    if message.get("word_timestamps") not in (None, False):
        raise InvalidRequest("'word_timestamps' is not available.", "word_timestamps")
    for name in ("stream_audio", "word_timestamps"):
        if message.get(name) not in (None, True, False):
            raise InvalidRequest(f"'{name}' must be true or false.", name)
    granularity = _one_of(message, "split_granularity", ("sentence", "clause", "none"))
    transport = _one_of(message, "audio_transport", ("binary", "base64"))
    stated = {name: value for name, value in message.items() if name not in _NOT_OF_A_REQUEST}
    return Settings(
        job=await speech.template(stated, "websocket", client_id),
        granularity=granularity,
        options=message.get("normalization_options"),
        whole_units=message.get("stream_audio") is False,
        base64=transport == "base64",
    )


_NOT_OF_A_REQUEST: Final = ("type", "stream", "stream_format")


def _one_of(message: dict[str, Any], name: str, values: tuple[Any, ...]) -> Any:
    value = message.get(name)
    if value is None:
        return values[0]
    if value not in values:
        raise InvalidRequest(f"'{name}' must be one of {', '.join(values)}.", name)
    return value


class LiveSession:
    """One connection; `run` is all of it."""

    def __init__(
        self,
        socket: WebSocket,
        speech: Speech,
        writer: LiveWriter,
        config: IngressConfig,
        recorder: metrics.Recorder,
        drain: Drain,
    ) -> None:
        self._socket = socket
        self._speech = speech
        self._writer = writer
        self._config = config
        self._recorder = recorder
        self._drain = drain
        self._connection = Connection(socket, config.reader_timeout_s)
        self._turns = Turns()
        self._settings: Settings | None = None
        self._number = 0
        self._sent_s = float("-inf")
        # The one whose text is coming in, and all that have not had their `session.done`.
        self._open: Utterance | None = None
        self._pending: list[Utterance] = []

    async def run(self) -> None:
        await self._socket.accept()
        leaving = leave(self._turns, self._drain)
        await converse(self._socket, self._connection, self._read(), self._turns.run(), leaving)
        for _ in self._pending:
            self._recorder.count(metrics.REQUESTS, status=str(CLIENT_GONE))

    async def _read(self) -> None:
        while True:
            live = self._config.live
            wait_s = live.config_timeout_s if self._settings is None else live.idle_timeout_s
            try:
                async with asyncio.timeout(wait_s):
                    message = await self._connection.receive(MAX_CONFIG_CHARS)
            except TimeoutError as error:
                rests_s = self._speech.clock() - self._sent_s
                if (self._pending and self._open is None) or rests_s < wait_s:
                    continue  # it is the client that waits, or listens
                what = "session.config" if self._settings is None else "a message"
                refused = InvalidRequest(f"No {what} within {wait_s:g} s.", None, "idle_timeout")
                raise SessionEnd(POLICY, refused) from error
            except InvalidRequest as error:
                await self._refuse(error)
                continue
            try:
                await self._handle(message)
            except SpeechError as error:
                await self._refuse(error)

    async def _refuse(self, error: SpeechError) -> None:
        if self._settings is None:
            raise SessionEnd(POLICY, error)
        await self._connection.send({"type": "error", **error_object(error)})

    async def _handle(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "session.config":
            if self._open is not None:
                raise InvalidRequest(
                    "A session.config comes between utterances: send input.done first.", "type"
                )
            client_id = self._socket.headers.get("x-request-id")
            self._settings = await read_settings(message, self._speech, client_id)
            return
        if self._settings is None:
            raise InvalidRequest("The first message must be a session.config.", "type")
        match kind:
            case "input.text":
                await self._take(message.get("text"), self._settings)
            case "input.flush":
                if self._open is not None and not self._open.is_settled:
                    await self._open.flush()
            case "input.done":
                await self._finish(self._settings)
            case "input.cancel":
                await self._cancel()
            case "session.close":
                self._leave_open()
                self._turns.close()
            case _:
                raise InvalidRequest(
                    f"Unknown message type: {str(kind)[:80]!r}; there are {', '.join(_KINDS)}.",
                    "type",
                )

    async def _take(self, text: Any, settings: Settings) -> None:
        if not isinstance(text, str):
            raise InvalidRequest("'text' must be a string.", "text")
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidRequest(
                f"'text' has at most {MAX_TEXT_CHARS} characters.", "text", "too_big"
            )
        waiting = sum(utterance.num_waiting for utterance in self._pending) + len(text)
        if waiting > self._config.max_input_chars:
            raise InvalidRequest(
                f"{waiting} characters would wait to be spoken, at most"
                f" {self._config.max_input_chars} may; this message was left out.",
                "text",
                "string_above_max_length",
            )
        utterance = self._open or (self._begin(settings) if text else None)
        if utterance is not None and not utterance.is_settled:
            await utterance.append(text)

    def _begin(self, settings: Settings) -> Utterance:
        self._drain.check_session()
        if len(self._pending) >= _MAX_UTTERANCES:
            raise InvalidRequest(
                f"{_MAX_UTTERANCES} utterances wait to be spoken.", "type", "too_many_utterances"
            )
        job = settings.job
        suffix = f"-{self._number}" if self._number else ""
        request = replace(job.request, request_id=f"{job.request.request_id}{suffix}")
        utterance = Utterance(
            self._number,
            _fresh(replace(job, request=request, start_s=self._speech.clock())),
            settings.granularity,
            settings.options,
            self._speech.clock,
        )
        self._number += 1
        self._open = utterance
        self._pending.append(utterance)
        self._turns.add(lambda: self._speak(utterance, settings))
        return utterance

    async def _finish(self, settings: Settings) -> None:
        utterance, self._open = self._open or self._begin(settings), None
        # What has failed was told at once, and the rest of its text is not spoken.
        if not utterance.is_settled:
            await utterance.finish()

    def _leave_open(self) -> None:
        """Text that never had its end is not spoken further than it is by now."""
        if self._open is not None:
            self._open.drop_rest()
            self._open = None

    async def _cancel(self) -> None:
        self._open = None
        dropped = self._pending
        await self._turns.stop()
        for utterance in [one for one in dropped if not one.is_settled]:
            await self._settle(utterance, str(CLIENT_GONE), cancelled=True)

    async def _speak(self, utterance: Utterance, settings: Settings) -> None:
        """Speak one utterance and say that it is done; what fails ends it and nothing else."""
        sentence, num_units = -1, 0
        try:
            async with aclosing(self._writer.events(utterance, settings.whole_units)) as events:
                async for event in events:
                    sentence = event.number
                    num_units = sentence + 1
                    try:
                        await self._send(event, utterance, settings)
                    except ReaderStalled as error:
                        await events.athrow(error)  # to be counted in there
        except (ClientGone, ReaderStalled):
            raise
        except Exception as error:
            if not isinstance(error, SpeechError):
                logger.exception("%s: failed", utterance.job.request.request_id)
            await self._tell_failure(utterance, sentence, error)
            status = str(error_response(error).status_code)
            await self._settle(utterance, status, total_sentences=num_units, error=True)
            return
        await self._settle(utterance, "200", total_sentences=num_units)

    async def _tell_failure(self, utterance: Utterance, sentence: int, error: Exception) -> None:
        """`sentence` is the unit that was being spoken, -1 before the first."""
        place = {"utterance_index": utterance.number, "sentence_index": sentence}
        if sentence >= 0:
            await self._connection.send({"type": "audio.done", **place, "error": True})
        await self._connection.send({"type": "error", **place, **error_object(error)})

    async def _send(self, event: Event, utterance: Utterance, settings: Settings) -> None:
        self._sent_s = self._speech.clock()
        place = {"utterance_index": utterance.number, "sentence_index": event.number}
        output = utterance.job.output
        match event:
            case UnitBegun():
                content: dict[str, Any] = {
                    "type": "audio.start",
                    **place,
                    "sentence_text": event.text,
                    "format": str(output.format),
                    "sample_rate": output.sample_rate_hz,
                    "channels": 1,
                    "start_s": round(event.start_s, 3),
                }
                await self._connection.send(content)
            case UnitAudio() if settings.base64:
                audio = base64.b64encode(event.data).decode("ascii")
                chunk = {"type": "audio.chunk", **place, "audio_b64": audio, "timestamps": None}
                await self._connection.send(chunk)
            case UnitAudio():
                await self._connection.send(event.data)
            case _:
                content = {
                    "type": "audio.done",
                    **place,
                    "total_bytes": event.num_bytes,
                    "duration_s": round(event.duration_s, 3),
                    "finish_reason": event.reason,
                    "error": False,
                }
                await self._connection.send(content)

    async def _settle(self, utterance: Utterance, status: str, **facts: Any) -> None:
        await self._tell_end(utterance, facts)
        # From here on nobody says so again: there was no pause since it was said.
        utterance.is_settled = True
        self._pending = [one for one in self._pending if one is not utterance]
        self._recorder.count(metrics.REQUESTS, status=status)

    async def _tell_end(self, utterance: Utterance, facts: dict[str, Any]) -> None:
        content = {"type": "session.done", "utterance_index": utterance.number, **facts}
        await self._connection.send(content)


def _fresh(job: Job) -> Job:
    return replace(job, timings=[], made=type(job.made)())
