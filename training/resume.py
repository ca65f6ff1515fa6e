"""Go on from a finished checkpoint where the work folder that made it is gone.

Weights come back as the file has them (bfloat16 and float16). Critics and the heads for phonemes,
which no checkpoint holds, do where `export` left them in a file of their own, else start anew, as
optimizers do.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.codec import Codec
from training.export import book_names
from training.shape import VoiceShape, voice_speech_config
from training.talker import TalkerModel
from training.widen import widen

_SPEECH: Final = "speech_tokenizer"
_WEIGHTS: Final = "model.safetensors"
_SHAPE_KEYS: Final = ("decoder_config", "encoder_config", "encoder_valid_num_quantizers")


def read_codec(folder: Path, shape: VoiceShape) -> Codec:
    """Return the speech tokenizer of a checkpoint, to train on.

    A decoder of fewer channels becomes as wide as `shape` has it; it still says the same.

    Raises:
        ValueError: it has other sizes than `shape`.
    """
    config = json.loads((folder / _SPEECH / "config.json").read_text(encoding="utf-8"))
    channels = int(config["decoder_config"]["decoder_dim"])
    if channels < shape.decoder_dim:
        narrow, codec = read_codec(folder, replace(shape, decoder_dim=channels)), Codec(shape)
        widen(narrow.speech, codec.speech)
        codec.books.load_state_dict(narrow.books.state_dict())
        return codec
    wanted = json.loads(json.dumps(voice_speech_config(shape)))
    for key in _SHAPE_KEYS:
        if config[key] != wanted[key]:
            raise ValueError(f"{folder} has another {key} than the recipe")
    tensors = load_file(folder / _SPEECH / _WEIGHTS)
    codec = Codec(shape)
    codec.speech.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    with torch.no_grad():
        entries = [tensors[book_names(book)[0]].float() for book in range(shape.num_groups)]
        codec.books.total.copy_(torch.stack(entries))
        codec.books.usage.fill_(1.0)
        codec.books.started.fill_(True)
    return codec


def read_talker(folder: Path) -> TalkerModel:
    """Return talker and code predictor of a checkpoint, to train on."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = TalkerModel(config)
    tensors = load_file(folder / _WEIGHTS)
    model.talker.load_state_dict(
        {name.removeprefix("talker."): tensor.float() for name, tensor in tensors.items()}
    )
    return model


def _floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in state.items()}


def resume(
    folder: Path,
    codec_file: Path,
    talker_file: Path,
    out: Path,
    shape: VoiceShape | None = None,
    heads: Path | None = None,
) -> None:
    """Write what the trainers go on from, and the checkpoint's configuration into `out`.

    Args:
        folder: the finished checkpoint.
        codec_file: the work folder's, for the codec.
        talker_file: likewise for talker and code predictor.
        out: its checkpoint.
        shape: of the speech tokenizer; see `read_codec`.
        heads: what `export.write_heads` wrote.
    """
    kept = torch.load(heads, weights_only=True) if heads else {}
    kept = {name: _floats(state) for name, state in kept.items()}
    shape = shape or VoiceShape()
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    file = out / _SPEECH / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["decoder_config"]["decoder_dim"] = shape.decoder_dim
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    codec = read_codec(folder, shape)
    spent = {"all": 0.0, "decoder": 0.0}
    if "codec" in kept:
        codec.phonemes.load_state_dict(kept["codec"])
    critics = {"critics": kept["critics"]} if "critics" in kept else {}
    torch.save({"codec": codec.state_dict(), "steps": 0, "spent": spent} | critics, codec_file)
    talker = read_talker(folder)
    if "talker" in kept:
        talker.phonemes.load_state_dict(kept["talker"])
    state = {"model": talker.state_dict(), "steps": 0, "spent": 0.0, "moments": {}}
    torch.save(state, talker_file)
