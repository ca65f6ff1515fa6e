"""One response: the events that announce it, carry its audio and say how it ended."""

import base64
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from serve_app.http.realtime.settings import Output
from serve_app.http.speech.accept import Job
from serve_app.http.speech.sse import ending_of

Status = Literal["completed", "cancelled", "failed", "incomplete"]
Event = dict[str, Any]


class Response:
    """The events of one response, which speaks `text`.

    Attributes:
        is_done: whether its `response.done` has been sent.
    """

    def __init__(self, job: Job, text: str, output: Output, metadata: Mapping[str, str]) -> None:
        self.id = new_id("resp")
        self.job = job
        self.is_done = False
        self._text = text
        self._output = output
        self._metadata = metadata
        self._item_id = new_id("item")

    def begin(self) -> Iterator[Event]:
        yield {"type": "response.created", "response": self._shown("in_progress", [])}
        item = self._item("in_progress", [])
        yield self._event("response.output_item.added", item=item)
        part = {"type": "audio", "transcript": ""}
        yield self._event("response.content_part.added", **self._place, part=part)
        kind = "response.output_audio_transcript.delta"
        yield self._event(kind, **self._place, delta=self._text)

    def audio(self, data: bytes) -> Event:
        """16 bit samples as the next event."""
        delta = base64.b64encode(self._output.encoded(data)).decode("ascii")
        return self._event("response.output_audio.delta", **self._place, delta=delta)

    def end(self, status: Status, details: Mapping[str, Any] | None = None) -> Iterator[Event]:
        is_whole = status in ("completed", "incomplete")
        part = {"type": "audio", "transcript": self._text}
        item_status = "completed" if status == "completed" else "incomplete"
        content = [{"type": "output_audio", "transcript": self._text}]
        item = self._item(item_status, content)
        if is_whole:
            yield self._event("response.output_audio.done", **self._place)
            kind = "response.output_audio_transcript.done"
            yield self._event(kind, **self._place, transcript=self._text)
            yield self._event("response.content_part.done", **self._place, part=part)
            yield self._event("response.output_item.done", item=item)
        done = self._shown(status, [item])
        done["status_details"] = None if details is None else {"type": status, **details}
        done["usage"] = self._usage()
        yield {"type": "response.done", "response": done}

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "response_id": self.id, "output_index": 0, **fields}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "object": "realtime.item",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _shown(self, status: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": None,
            "output": items,
            "conversation_id": None,
            "output_modalities": ["audio"],
            "max_output_tokens": "inf",
            "audio": {"output": self._output.shown()},
            "metadata": dict(self._metadata) or None,
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = ending_of(self.job)["usage"]
        return {
            **{name: usage[name] for name in ("total_tokens", "input_tokens", "output_tokens")},
            "input_token_details": {**usage["input_token_details"], "cached_tokens": 0},
            "output_token_details": {"text_tokens": 0, "audio_tokens": usage["output_tokens"]},
        }


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
