"""The embedded default: a tiny checkpoint with random weights, written once into the user's cache.

Finding it loads no torch: whoever only reads its configuration starts seconds earlier.
"""

import hashlib
import os
from pathlib import Path

_WRITERS = sorted((Path(__file__).parents[1] / "random_checkpoint").glob("*.py"))


def embedded_checkpoint() -> Path:
    """Return the folder of the tiny custom-voice checkpoint, written on first use into the cache.

    The path names the version of the modules that write it. Several processes may call this at
    once: each writes its own copy and the first rename wins.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
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
