"""The folder of the checkpoint that an application serves; finding it loads no torch."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from serve_app.config import AppConfig
from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.embedded import embedded_checkpoint

# The commit of each release that this code was checked against; a pin keeps a replica from
# loading other weights than its neighbours. In full: a cache is looked up by the whole name.
# Source: the repositories' commit lists.
KNOWN_REVISIONS: Final[Mapping[str, str]] = {
    "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice": "85e237c12c027371202489a0ec509ded67b5e4b5",
    "Qwen/Qwen3-TTS-12Hz-0.6B-Base": "5d83992436eae1d760afd27aff78a71d676296fc",
    "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice": "0c0e3051f131929182e2c023b9537f8b1c68adfe",
    "Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign": "5ecdb67327fd37bb2e042aab12ff7391903235d3",
    "Qwen/Qwen3-TTS-12Hz-1.7B-Base": "fd4b254389122332181a7c3db7f27e918eec64e3",
}

# What a card is made of, and what serving needs besides.
_DESCRIPTION: Final = ["*.json"]
_FILES: Final = [*_DESCRIPTION, "merges.txt", "*.safetensors"]
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def checkpoint_folder(config: AppConfig) -> Path:
    """Return the folder of the configured checkpoint, or of the embedded one.

    Each replica asks for itself: the nodes of a cluster need no shared storage, only the same
    configuration.
    """
    if config.model is None:
        return embedded_checkpoint()
    return locate(config.model, config.revision)


def description_folder(config: AppConfig) -> Path:
    """Like `checkpoint_folder`, but of a hub id's files only the configuration is there for sure.

    Whoever describes a checkpoint, on a head node say, does without its gigabytes.
    """
    if config.model is None:
        return embedded_checkpoint()
    return locate(config.model, config.revision, _DESCRIPTION)


def fault(model: str, revision: str | None) -> str | None:
    """Why `model` cannot be served, as far as that is known without opening or downloading it."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return "has no config.json: it is no checkpoint"
    elif not _HUB_ID.fullmatch(model):
        return "is neither a folder nor a hub id of the form owner/name"
    elif revision is None and model not in KNOWN_REVISIONS:
        known = ", ".join(KNOWN_REVISIONS)
        return f"needs a revision (a commit); without one only these load: {known}"
    return None


def locate(model: str, revision: str | None, files: Sequence[str] = _FILES) -> Path:
    """Return the folder of `model`, a local path or a hub id, downloading what the cache lacks.

    Args:
        model: local path or hub id.
        revision: commit of a hub id; None takes the known one.
        files: patterns of the names that are downloaded.

    Raises:
        CheckpointError: no such folder, a hub id without a revision to pin, or the hub refused.
    """
    found = fault(model, revision)
    if found is not None:
        raise CheckpointError(model, found)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    pinned = revision or KNOWN_REVISIONS[model]
    patterns = list(files)
    try:
        return Path(snapshot_download(model, revision=pinned, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        try:
            # The hub cannot be reached; the commit is all that has to be known about the files.
            return Path(
                snapshot_download(
                    model, revision=pinned, allow_patterns=patterns, local_files_only=True
                )
            )
        except (HFValidationError, LocalEntryNotFoundError, OSError):
            pass
        raise CheckpointError(model, f"revision {pinned} cannot be downloaded: {error}") from error
