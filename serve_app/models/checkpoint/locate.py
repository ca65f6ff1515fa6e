"""The folder of the checkpoint that an application serves; finding it loads no torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from serve_app.config import AppConfig
from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.embedded import embedded_checkpoint

# The commit of each release that this code was checked against; a pin keeps a replica from
# loading other weights than its neighbours. Source: the repositories' commit lists (abbreviated,
# which the hub's API accepts).
KNOWN_REVISIONS: Final[Mapping[str, str]] = {
    "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice": "85e237c1",
    "Qwen/Qwen3-TTS-12Hz-0.6B-Base": "5d839924",
    "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice": "0c0e3051",
    "Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign": "5ecdb673",
    "Qwen/Qwen3-TTS-12Hz-1.7B-Base": "fd4b2543",
}

_FILES: Final = ["*.json", "merges.txt", "*.safetensors"]
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def checkpoint_folder(config: AppConfig) -> Path:
    """Return the folder of the configured checkpoint, or of the embedded one.

    Each replica asks for itself: the nodes of a cluster need no shared storage, only the same
    configuration.
    """
    if config.model is None:
        return embedded_checkpoint()
    return locate(config.model, config.revision)


def locate(model: str, revision: str | None) -> Path:
    """Return the folder of `model`, a local path or a hub id, downloading it if the cache lacks it.

    Raises:
        CheckpointError: no such folder, a hub id without a revision to pin, or the hub refused.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(model, "is neither a folder nor a hub id of the form owner/name")
    pinned = revision or KNOWN_REVISIONS.get(model)
    if pinned is None:
        known = ", ".join(KNOWN_REVISIONS)
        raise CheckpointError(
            model, f"needs a revision (a commit); without one only these load: {known}"
        )
    try:
        return Path(snapshot_download(model, revision=pinned, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(model, f"revision {pinned} cannot be downloaded: {error}") from error
