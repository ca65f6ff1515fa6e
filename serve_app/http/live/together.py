"""`WS /v1/audio/speech/websocket`: the same session in the words of Together's API.

    ?model=...&voice=...                        session.created
    tts_session.updated {session}               session.updated
    input_text_buffer.append {text} *           conversation.item.input_text.received,
                                                conversation.item.audio_output.delta *
    input_text_buffer.commit                    conversation.item.audio_output.done
    input_text_buffer.clear

Audio is base64 of bare 16-bit samples. What cannot be spoken is told by
`conversation.item.tts.failed`, and the session goes on.
"""

import base64
from typing import Any, Final

from serve_app.errors import InvalidRequest, SpeechError
from serve_app.http.live.connection import POLICY, SessionEnd, error_object
from serve_app.http.live.session import LiveSession, Settings, read_settings
from serve_app.http.live.utterance import Utterance
from serve_app.http.live.writer import Event, UnitAudio

# Of the address and of a session's fields, what means something here.
_FIELDS: Final = ("model", "voice", "language", "instructions", "speed", "seed", "sample_rate")


class TogetherSession(LiveSession):
    """One connection; `run` is all of it."""

    _stated: dict[str, Any]

    async def _read(self) -> None:
        query = self._socket.query_params
        self._stated = {name: query[name] for name in _FIELDS if query.get(name)}
        try:
            self._settings = await self._read_settings(self._stated)
        except SpeechError as error:
            raise SessionEnd(POLICY, error) from error
        await self._connection.send({"type": "session.created", "session": self._session()})
        await super()._read()

    async def _read_settings(self, stated: dict[str, Any]) -> Settings:
        client_id = self._socket.headers.get("x-request-id")
        return await read_settings({**stated, "response_format": "pcm"}, self._speech, client_id)

    async def _handle(self, message: dict[str, Any]) -> None:
        settings = self._settings
        assert settings is not None
        match message.get("type"):
            case "tts_session.updated":
                await self._update(message.get("session"))
            case "input_text_buffer.append":
                await self._append(message.get("text"), settings)
            case "input_text_buffer.commit":
                # Clients commit what they have committed already.
                if self._open is not None:
                    await self._finish(settings)
            case "input_text_buffer.clear":
                await self._cancel()
            case kind:
                raise InvalidRequest(f"Unknown message type: {str(kind)[:80]!r}.", "type")

    async def _update(self, session: Any) -> None:
        """What is stated holds from the next text on that follows a commit."""
        if not isinstance(session, dict):
            raise InvalidRequest("'session' must be an object.", "session")
        known = {name: session[name] for name in _FIELDS if session.get(name) is not None}
        stated = {**self._stated, **known}
        self._settings, self._stated = await self._read_settings(stated), stated
        await self._connection.send({"type": "session.updated", "session": self._session()})

    async def _append(self, text: Any, settings: Settings) -> None:
        try:
            await self._take(text, settings)
        except InvalidRequest as error:
            failed = {"type": "conversation.item.tts.failed", "item_id": self._item(self._open)}
            await self._connection.send({**failed, **error_object(error)})
            return
        received = {"type": "conversation.item.input_text.received", "text": text}
        await self._connection.send({**received, "item_id": self._item(self._open)})

    async def _tell_failure(self, utterance: Utterance, sentence: int, error: Exception) -> None:
        del sentence
        failed = {"type": "conversation.item.tts.failed", "item_id": self._item(utterance)}
        await self._connection.send({**failed, **error_object(error)})

    async def _send(self, event: Event, utterance: Utterance, settings: Settings) -> None:
        del settings
        self._sent_s = self._speech.clock()
        if isinstance(event, UnitAudio):
            await self._connection.send(
                {
                    "type": "conversation.item.audio_output.delta",
                    "item_id": self._item(utterance),
                    "delta": base64.b64encode(event.data).decode("ascii"),
                }
            )

    async def _tell_end(self, utterance: Utterance, facts: dict[str, Any]) -> None:
        # What was cleared has no end: a client would take it for that of what it says next.
        if not (facts.get("cancelled") or facts.get("error")):
            done = {"type": "conversation.item.audio_output.done"}
            await self._connection.send({**done, "item_id": self._item(utterance)})

    def _item(self, utterance: Utterance | None) -> str:
        return f"tts_{self._number if utterance is None else utterance.number + 1}"

    def _session(self) -> dict[str, Any]:
        settings = self._settings
        assert settings is not None
        request = settings.job.request
        return {
            "id": request.request_id,
            "object": "realtime.tts.session",
            "model": request.model,
            "voice": None if request.voice is None else str(request.voice),
        }
