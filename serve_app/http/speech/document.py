"""The fields of a speech request as the OpenAPI document has them, and requests that work."""

from typing import Any, Final

from serve_app.http.document import AUDIO, EVENTS, operation
from serve_app.http.speech.body import SpeechBody

FIELDS: Final[dict[str, Any]] = SpeechBody.model_json_schema()
_HELLO: Final = {"model": "tts-1", "input": "Hello, how are you?", "voice": "alloy"}
EXAMPLES: Final[dict[str, Any]] = {
    "as OpenAI's": _HELLO,
    "a file": {**_HELLO, "response_format": "wav", "stream": False},
    "events": {**_HELLO, "response_format": "mp3", "stream_format": "sse"},
    "slowly, in German": {
        "input": "Guten Morgen. [pause 0.5s] Wie geht es dir?",
        "voice": "alloy",
        "language": "de",
        "response_format": "opus",
        "speed": 0.8,
    },
    "the same audio each time": {
        **_HELLO,
        "response_format": "flac",
        "seed": 7,
        "temperature": 0.7,
    },
    "for a telephone": {**_HELLO, "response_format": "pcm", "sample_rate": 8000},
    "as Together's": {
        **_HELLO,
        "response_format": "raw",
        "response_encoding": "pcm_s16le",
        "stream": True,
    },
}
SPEECH: Final = operation(FIELDS, EXAMPLES, {**AUDIO, **EVENTS})
