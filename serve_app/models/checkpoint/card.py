"""What may be known of a checkpoint without torch or its weights."""

from dataclasses import replace
from pathlib import Path

from serve_app.config import AppConfig
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.text_tokenizer import control_strings
from serve_app.types import ModelCard


def describe(config: AppConfig, folder: Path) -> ModelCard:
    """The card of what `config` serves from `folder`.

    Raises:
        CheckpointError: it is no checkpoint that can be served.
    """
    embedded = config.model is None
    name = config.served_model_name or (
        folder.name if config.model is None else _name(config.model)
    )
    card = read_spec(folder).card(name, str(folder), embedded)
    # A client is told at once what the talker's engine could not hold.
    longest = min(card.max_new_tokens, config.talker.max_model_len)
    return replace(card, max_new_tokens=longest, control_strings=control_strings(folder))


def _name(model: str) -> str:
    """A hub id stays as it is; of a folder only its own name is anybody's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
