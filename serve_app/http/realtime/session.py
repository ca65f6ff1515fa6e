"""`WS /v1/realtime`: the part of OpenAI's Realtime API in which a client has text spoken.

Text is spoken as it is: nothing here thinks of an answer. Audio that comes in, tools and turn
detection are accepted and have no effect.
"""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from fastapi import WebSocket

from serve_app import metrics
from serve_app.config import IngressConfig
from serve_app.errors import InvalidRequest, SpeechError
from serve_app.http.draining.drain import Drain
from serve_app.http.errors import error_response
from serve_app.http.live.connection import (
    NORMAL,
    POLICY,
    Connection,
    SessionEnd,
    converse,
    error_object,
    leave,
)
from serve_app.http.live.turns import Turns
from serve_app.http.realtime.items import spoken_text, texts_of
from serve_app.http.realtime.response import Event, Response, Status, new_id
from serve_app.http.realtime.settings import Output, model_name
from serve_app.http.response import CLIENT_GONE, ClientGone, ReaderStalled
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.writer import AudioCut, AudioWriter

# OpenAI's limit on a message is 15 MB of audio; there is no use for such here.
_MAX_MESSAGE_CHARS: Final = 4 << 20
_MAX_METADATA: Final = 16

logger = logging.getLogger(__name__)


class RealtimeSession:
    """One connection; `run` is all of it."""

    def __init__(
        self,
        socket: WebSocket,
        speech: Speech,
        writer: AudioWriter,
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
        self._id = new_id("sess")
        self._model = socket.query_params.get("model")
        self._output = Output()
        self._shown: dict[str, Any] = {}
        # What the last message of the user says, and the response that is not done.
        self._text: str | None = None
        self._response: Response | None = None

    async def run(self) -> None:
        # Browsers send their key as a second subprotocol, which is not to be repeated.
        offered = self._socket.scope.get("subprotocols") or []
        await self._socket.accept("realtime" if "realtime" in offered else None)
        leaving = leave(self._turns, self._drain)
        await converse(self._socket, self._connection, self._read(), self._turns.run(), leaving)
        if self._response is not None:
            self._recorder.count(metrics.REQUESTS, status=str(CLIENT_GONE))

    async def _read(self) -> None:
        try:
            await self._check(self._output)
        except SpeechError as error:
            # Of a model that clones voices the client has had no chance yet to name one.
            if not isinstance(error, InvalidRequest) or error.code != "voice_not_found":
                raise SessionEnd(POLICY, error) from error
        await self._send({"type": "session.created", "session": self._session()})
        while True:
            message: dict[str, Any] = {}
            try:
                async with asyncio.timeout(self._config.live.idle_timeout_s):
                    message = await self._connection.receive(_MAX_MESSAGE_CHARS)
                await self._handle(message)
            except TimeoutError as error:
                if self._response is None:
                    raise SessionEnd(NORMAL) from error
            except SpeechError as error:
                await self._tell(error, message.get("event_id"))

    async def _check(self, output: Output) -> None:
        await self._speech.template(output.request(model_name(self._model)), "realtime")

    async def _handle(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        match kind:
            case "session.update":
                await self._update(message.get("session"))
            case "conversation.item.create":
                await self._add(message.get("item"))
            case "conversation.item.truncate":
                names = ("item_id", "content_index", "audio_end_ms")
                place = {name: message.get(name) for name in names}
                await self._send({"type": "conversation.item.truncated", **place})
            case "response.create":
                await self._create(message.get("response"))
            case "response.cancel":
                await self._cancel(message.get("response_id"))
            case str() if kind.startswith("input_audio_buffer."):
                return  # nobody listens
            case _:
                raise InvalidRequest(f"Unknown event type: {str(kind)[:80]!r}.", "type")

    async def _update(self, session: Any) -> None:
        output = self._output.changed(session, "session")
        await self._check(output)
        self._output = output
        names = ("output_modalities", "instructions", "tools", "tool_choice")
        self._shown |= {name: session[name] for name in names if session and name in session}
        await self._send({"type": "session.updated", "session": self._session()})

    async def _add(self, item: Any) -> None:
        self._text = spoken_text(item, "item") or self._text
        item_id = item.get("id") if isinstance(item.get("id"), str) else new_id("item")
        shown = {**item, "id": item_id, "object": "realtime.item", "status": "completed"}
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._send({"type": kind, "previous_item_id": None, "item": shown})

    async def _create(self, stated: Any) -> None:
        if self._response is not None:
            raise InvalidRequest(
                f"The response {self._response.id} is in progress: wait for it, or cancel it.",
                None,
                "conversation_already_has_active_response",
            )
        self._drain.check_session()
        output = self._output.changed(stated, "response")
        fields = stated or {}
        metadata = _metadata(fields.get("metadata"))
        output = replace(output, style=metadata.get("instructions", output.style))
        given = fields.get("input")
        text = self._text if given is None else texts_of(given, "response.input")
        if not text or not text.strip():
            raise InvalidRequest("There is no text to be spoken.", "response.input", "empty_string")
        request = {**output.request(model_name(self._model)), "input": text}
        client_id = self._socket.headers.get("x-request-id")
        job = await self._speech.accept(request, client_id)
        response = Response(replace(job, transport="realtime"), text, output, metadata)
        self._response = response
        self._turns.add(lambda: self._speak(response))

    async def _cancel(self, response_id: Any) -> None:
        response = self._response
        if response is None or response_id not in (None, response.id):
            raise InvalidRequest(
                "There is no such response in progress.", None, "response_cancel_not_active"
            )
        await self._turns.stop()
        if not response.is_done:
            await self._end(response, "cancelled", {"reason": "client_cancelled"}, str(CLIENT_GONE))

    async def _speak(self, response: Response) -> None:
        """Make one response; what fails ends it and nothing else."""
        try:
            for event in response.begin():
                await self._send(event)
            async with aclosing(self._writer.pieces(response.job)) as pieces:
                async for piece in pieces:
                    try:
                        await self._send(response.audio(piece))
                    except ReaderStalled as error:
                        await pieces.athrow(error)  # to be counted in there
        except (ClientGone, ReaderStalled):
            raise
        except Exception as error:
            cause = error.__cause__ if isinstance(error, AudioCut) else error
            if isinstance(cause, ReaderStalled):
                raise cause from error
            if not isinstance(cause, SpeechError):
                logger.exception("%s: failed", response.job.request.request_id)
            known = cause if isinstance(cause, Exception) else error
            await self._tell(known, None)
            content = error_object(known)["error"]
            named = {name: content[name] for name in ("type", "code", "message")}
            status = str(error_response(known).status_code)
            await self._end(response, "failed", {"error": named}, status)
            return
        if response.job.made.finish_reason == "length":
            await self._end(response, "incomplete", {"reason": "max_output_tokens"}, "200")
        else:
            await self._end(response, "completed", None, "200")

    async def _end(
        self, response: Response, status: Status, details: dict[str, Any] | None, code: str
    ) -> None:
        for event in response.end(status, details):
            await self._send(event)
        # There was no pause since it was said: a cancel finds it done or says so itself.
        response.is_done = True
        self._response = None
        self._recorder.count(metrics.REQUESTS, status=code)

    async def _tell(self, error: Exception, event_id: Any) -> None:
        content = {**error_object(error)["error"], "event_id": event_id}
        await self._send({"type": "error", "error": content})

    async def _send(self, event: Event) -> None:
        await self._connection.send({"event_id": new_id("event"), **event})

    def _session(self) -> dict[str, Any]:
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self._id,
            "model": self._model or self._speech.default_name,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "none",
            "max_output_tokens": "inf",
            **self._shown,
            "audio": {
                "input": {"format": {"type": "audio/pcm", "rate": 24000}, "turn_detection": None},
                "output": self._output.shown(),
            },
        }


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    is_right = isinstance(value, dict) and len(value) <= _MAX_METADATA
    if not is_right or not all(isinstance(text, str) for text in value.values()):
        message = f"'response.metadata' must be an object of at most {_MAX_METADATA} strings."
        raise InvalidRequest(message, "response.metadata")
    return value
