"""Text ids of sentences, with the splits varied in training so that spelling is learnt."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import models

from serve_app.models.checkpoint.reading import TEXT_NEEDS
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer, qwen2_pipeline
from serve_app.models.checkpoint.voice_aliases import VOICE_ALIASES
from serve_app.models.random_checkpoint.configuration import write_json, write_shared_configs
from serve_app.models.random_checkpoint.tokenizer import write_text_tokenizer
from training.shape import (
    OPENAI_VOICES,
    TEXT_NEEDS_OF_VOICE,
    VoiceShape,
    voice_model_config,
    voice_speech_config,
)


def write_configuration(folder: Path, shape: VoiceShape, texts: Sequence[str]) -> None:
    """Train the tokenizer on `texts` and write all of a checkpoint but its weights."""
    (folder / "speech_tokenizer").mkdir(parents=True, exist_ok=True)
    ids = write_text_tokenizer(folder, full=False, texts=texts, num_tokens=shape.text_tokens)
    write_json(folder / "config.json", voice_model_config(shape, ids))
    write_json(folder / "speech_tokenizer/config.json", voice_speech_config(shape))
    write_json(folder / VOICE_ALIASES, OPENAI_VOICES)
    write_json(folder / TEXT_NEEDS, asdict(TEXT_NEEDS_OF_VOICE))
    write_shared_configs(folder)
    generation = folder / "generation_config.json"
    content: dict[str, Any] = json.loads(generation.read_text(encoding="utf-8"))
    # A codebook of 256 comes round every few seconds: a penalty on what was used would hurt.
    content |= {
        "repetition_penalty": 1.0,
        "temperature": 0.1,
        "top_k": 30,
        "subtalker_temperature": 0.1,
        "subtalker_top_k": 30,
        "max_new_tokens": 1024,
    }
    write_json(generation, content)


class Splitter:
    """A checkpoint's tokenizer, and a version of it that leaves out merges at random."""

    def __init__(self, folder: Path, dropout: float) -> None:
        self.exact = TextTokenizer.from_dir(folder)
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        self._varied = qwen2_pipeline(models.BPE.from_file(*files, dropout=dropout))

    @property
    def newline(self) -> int:
        return self.exact.encode("\n")[0]

    def varied(self, text: str) -> list[int]:
        """Return the ids of `text` in one of its possible splits."""
        return self._varied.encode(text, add_special_tokens=False).ids
