"""Check that a checkpoint is complete, hand out its tensors.

A folder in the layout of the Qwen3-TTS 12Hz releases: bf16 talker and code predictor in
model.safetensors (sharded or not), fp32 speech tokenizer in speech_tokenizer/model.safetensors.
Names and shapes follow from the configuration files alone, so a damaged or foreign checkpoint is
refused before a weight is read, and without torch.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from safetensors import SafetensorError, safe_open

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.encoder_shapes import (
    speaker_encoder_shapes,
    speech_encoder_shapes,
)
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.shapes import (
    Shapes,
    code_predictor_shapes,
    speech_decoder_shapes,
    talker_shapes,
)
from serve_app.models.checkpoint.spec import ModelSpec

if TYPE_CHECKING:
    import torch

MODEL_WEIGHTS: Final = "model.safetensors"
SPEECH_WEIGHTS: Final = "speech_tokenizer/model.safetensors"
_TOKENIZER: Final = ("vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint folder; holds no weights, so it is cheap to copy and to pickle."""

    path: Path
    spec: ModelSpec
    model_files: Mapping[str, Path]
    speech_files: Mapping[str, Path]

    def tensors(self, prefix: str) -> "dict[str, torch.Tensor]":
        """Return talker and code predictor tensors under `prefix`, which is cut from their names.

        CPU tensors in the file's dtype, mapped from the file: clone or move them, never write to
        them.
        """
        return _load(self.model_files, prefix)

    def speech_tokenizer_tensors(self, prefix: str) -> "dict[str, torch.Tensor]":
        """Return the speech tokenizer's tensors under `prefix`, as `tensors` does."""
        return _load(self.speech_files, prefix)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the facts of a checkpoint and verify name and shape of every tensor that serving needs.

    Only headers are read. Encoders, which serving needs of a Base checkpoint only, may be absent
    from others.

    Raises:
        CheckpointError: names the file, and the tensor with its expected and found shape.
    """
    spec = read_spec(path)
    model_files = _files(path, MODEL_WEIGHTS)
    speech_files = _files(path, SPEECH_WEIGHTS)
    model_shapes = talker_shapes(spec.talker) | code_predictor_shapes(spec.code_predictor)
    speech_shapes = speech_decoder_shapes(spec.speech_decoder)
    if spec.voice_encoder is not None:
        model_shapes |= speaker_encoder_shapes(spec.voice_encoder.speaker)
        speech_shapes |= speech_encoder_shapes(spec.voice_encoder.speech.mimi)
    _verify(path / MODEL_WEIGHTS, model_files, model_shapes)
    _verify(path / SPEECH_WEIGHTS, speech_files, speech_shapes)
    return Checkpoint(path, spec, model_files, speech_files)


def folder_fault(path: Path) -> str | None:
    """Why what is in this folder cannot be served, as far as files and their headers say."""
    from serve_app.models.checkpoint.text_tokenizer import TextTokenizer, check_merges

    missing = [name for name in _TOKENIZER if not (path / name).is_file()]
    if missing:
        return f"{path}: has no {' and no '.join(missing)}: it is no whole checkpoint"
    try:
        open_checkpoint(path)
        TextTokenizer.from_dir(path)
        check_merges(path)
    except CheckpointError as error:
        return str(error)
    return None


def _files(path: Path, name: str) -> dict[str, Path]:
    """Map each tensor name to the file that holds it."""
    single = path / name
    index = path / f"{name}.index.json"
    if single.is_file() or not index.is_file():
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {tensor: single.parent / shard for tensor, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(str(index), f"is not a safetensors index: {error!r}") from error


def _verify(whole: Path, files: Mapping[str, Path], expected: Shapes) -> None:
    missing = [tensor for tensor in expected if tensor not in files]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        shape = list(expected[missing[0]])
        raise CheckpointError(str(whole), f"lacks tensor {missing[0]} of shape {shape}{others}")
    for shard, tensors in _by_file({tensor: files[tensor] for tensor in expected}):
        with _opened(shard) as file:
            present = set(file.keys())
            for tensor in tensors:
                if tensor not in present:
                    raise CheckpointError(
                        str(shard), f"lacks tensor {tensor}, which the index places here"
                    )
                found = tuple(file.get_slice(tensor).get_shape())
                if found != expected[tensor]:
                    wanted = list(expected[tensor])
                    reason = f"tensor {tensor}: expected shape {wanted}, found {list(found)}"
                    raise CheckpointError(str(shard), reason)


def _load(files: Mapping[str, Path], prefix: str) -> "dict[str, torch.Tensor]":
    loaded: dict[str, torch.Tensor] = {}
    for shard, tensors in _by_file(
        {name: file for name, file in files.items() if name.startswith(prefix)}
    ):
        with _opened(shard, "pt") as file:
            for name in tensors:
                loaded[name.removeprefix(prefix)] = file.get_tensor(name)
    return loaded


def _by_file(files: Mapping[str, Path]) -> Iterator[tuple[Path, list[str]]]:
    for shard in sorted(set(files.values())):
        yield shard, [tensor for tensor, file in files.items() if file == shard]


def _opened(file: Path, framework: Literal["np", "pt"] = "np") -> safe_open:
    try:
        return safe_open(str(file), framework=framework)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(file), f"cannot be read as safetensors: {error}") from error
