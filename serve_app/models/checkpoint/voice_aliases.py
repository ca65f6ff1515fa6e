"""Other names of a checkpoint's speakers, which the checkpoint itself may bring along."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from serve_app.errors import CheckpointError

VOICE_ALIASES: Final = "voice_aliases.json"


def read_voice_aliases(path: Path, speakers: Collection[str]) -> dict[str, str]:
    """Read a JSON object of names, each with the speaker it stands for; {} where there is no file.

    The releases have none. Names and speakers are lower case in what is returned.

    Raises:
        CheckpointError: the file is damaged, or names a speaker that the checkpoint lacks.
    """
    file = path / VOICE_ALIASES
    if not file.is_file():
        return {}
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(str(file), f"is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(str(file), f"must hold a JSON object, not {type(data).__name__}")
    for name, speaker in data.items():
        if not isinstance(speaker, str) or speaker.lower() not in speakers:
            raise CheckpointError(
                str(file), f"{name} is {speaker!r}; speakers: {', '.join(speakers)}"
            )
    return {name.lower(): speaker.lower() for name, speaker in data.items()}
