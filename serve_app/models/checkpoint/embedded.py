"""The embedded default: a tiny checkpoint with random weights, written once into the user's cache.

Finding it loads no torch: whoever only reads its configuration starts seconds earlier.
"""

import hashlib
from pathlib import Path

from serve_app.config import Environment

# All that decides its files: who writes them, and what the writer knows of names, shapes and
# layout.
_WRITERS = sorted(
    file
    for folder in ("random_checkpoint", "checkpoint")
    for file in (Path(__file__).parents[1] / folder).glob("*.py")
)


def embedded_checkpoint() -> Path:
    """Return the folder of the tiny custom-voice checkpoint, written on first use into the cache.

    The path names the version of the modules that write it. Several processes may call this at
    once: each writes its own copy and the first rename wins.
    """
    cache = Environment.read().cache
    version = hashlib.sha256(b"".join(file.read_bytes() for file in _WRITERS)).hexdigest()[:12]
    path = cache / "qwen3-tts-serve" / version / "tiny-custom-voice"
    if not path.exists():
        from serve_app.models.random_checkpoint.write import write_checkpoint

        try:
            write_checkpoint(path, size="tiny", variant="custom_voice")
        except OSError:
            if not (path / "model.safetensors").is_file():
                raise
    return path
