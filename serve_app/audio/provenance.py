"""How audio says that a machine made it: tags inside the file, a header beside it.

Article 50(2) of the EU AI Act asks for a mark that machines can read. Containers that stand at the
beginning of a stream carry it there; bare samples and AAC have the header of the response only.
"""

from collections.abc import Mapping
from typing import Final

from serve_app import __version__

TAGS: Final[Mapping[str, str]] = {
    "comment": "AI-generated speech",
    "artist": "Qwen3-TTS",
    "encoded_by": f"qwen3-tts-serve {__version__}",
}
HEADERS: Final[Mapping[str, str]] = {"X-AI-Generated": "true"}
