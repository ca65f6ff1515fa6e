"""A body as server-sent events: `stream_format: "sse"`, in OpenAI's shape.

One JSON object for each `data:` line, told apart by its `type`. What breaks off ends with an event
that says why, and then breaks off: a clean end would be taken for the whole.
"""

import base64
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from serve_app.http.errors import error_response
from serve_app.http.response import ReaderStalled
from serve_app.http.speech.accept import Job
from serve_app.http.speech.writer import AudioCut

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
# Where the audio of an event belongs, in its form.
_AUDIO: Final = "@"


def openai_events(job: Job, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """An encoded body as `speech.audio.delta`, then `speech.audio.done`."""
    return _events(
        pieces,
        lambda audio: {"type": "speech.audio.delta", "audio": audio},
        lambda: _event({"type": "speech.audio.done", **ending_of(job)}),
    )


def together_events(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """An encoded body as Together's clients read it."""
    return _events(
        pieces,
        lambda audio: {
            "type": "conversation.item.audio_output.delta",
            "item_id": "tts_1",
            "delta": audio,
        },
        lambda: b"data: [DONE]\n\n",
    )


async def _events(
    pieces: AsyncGenerator[bytes, None],
    delta: Callable[[str], Mapping[str, Any]],
    ending: Callable[[], bytes],
) -> AsyncGenerator[bytes, None]:
    """`delta` of each piece in base64, then `ending`; raises what `pieces` raises."""
    # Base64 needs no escapes, for which JSON's writer would look through all of it.
    before, after = _event(delta(_AUDIO)).split(_AUDIO.encode())
    try:
        async for piece in pieces:
            yield b"".join((before, base64.b64encode(piece), after))
    except ReaderStalled as error:  # thrown in here, and to be counted in there
        await pieces.athrow(error)
    except AudioCut as cut:
        cause = cut.__cause__
        answer = error_response(cause if isinstance(cause, Exception) else cut)
        yield _event({"type": "error", **json.loads(bytes(answer.body))})
        raise
    finally:
        await pieces.aclose()
    yield ending()


def ending_of(job: Job) -> dict[str, Any]:
    """What the last event says: OpenAI's `usage`, and as an addition why the audio ended."""
    return {"usage": usage(job), "finish_reason": job.made.finish_reason}


def usage(job: Job) -> dict[str, Any]:
    """Tokens in OpenAI's sense: those that the talker read, and the codec frames that were made."""
    made = job.made
    num_read = made.num_text_tokens + made.num_audio_tokens
    return {
        "input_tokens": num_read,
        "output_tokens": made.num_frames,
        "total_tokens": num_read + made.num_frames,
        "input_token_details": {
            "text_tokens": made.num_text_tokens,
            "audio_tokens": made.num_audio_tokens,
        },
        "audio_duration_seconds": round(job.output.seconds(made.num_samples), 3),
    }


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n\n"
