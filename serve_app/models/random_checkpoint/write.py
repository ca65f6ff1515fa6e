"""Write checkpoints with random weights in the released on-disk format, offline.

A tiny one speaks noise in milliseconds on a CPU, which is what most tests run on. A full-size one
has the shapes, dtypes and speed of a release. Both load in the reference package. Weights are drawn
per tensor from (seed, name), scaled so that activations keep unit size and every term of the model
matters to the output.
"""

import argparse
import tempfile
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file

from serve_app.models.checkpoint.encoder_shapes import (
    speaker_encoder_shapes,
    speech_encoder_shapes,
)
from serve_app.models.checkpoint.files import MODEL_WEIGHTS, SPEECH_WEIGHTS
from serve_app.models.checkpoint.reading import CONFIG, SPEECH_CONFIG, read_spec
from serve_app.models.checkpoint.shapes import (
    Shapes,
    code_predictor_shapes,
    speech_decoder_shapes,
    talker_shapes,
)
from serve_app.models.random_checkpoint.configuration import (
    Size,
    is_full,
    model_config,
    speech_config,
    write_json,
    write_shared_configs,
)
from serve_app.models.random_checkpoint.tokenizer import write_text_tokenizer
from serve_app.models.random_checkpoint.weights import Eos, RandomWeights
from serve_app.types import TaskType


def write_checkpoint(
    path: Path,
    *,
    size: Size,
    variant: TaskType,
    seed: int = 0,
    eos: Eos = "natural",
    device: str = "cpu",
) -> None:
    """Write a checkpoint folder to `path`, which appears complete or not at all.

    `eos` "natural" lets a run end by itself after some tens of frames; "unreachable" lets it end
    only by its length limit. The same arguments give the same bytes on the same device type.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        shapes, speech_shapes = write_configuration(folder, size=size, variant=variant)
        draw = RandomWeights(seed, eos, device)
        _save(folder / MODEL_WEIGHTS, draw.tensors(shapes, torch.bfloat16))
        _save(folder / SPEECH_WEIGHTS, draw.tensors(speech_shapes, torch.float32))
        folder.rename(path)


def write_configuration(folder: Path, *, size: Size, variant: TaskType) -> tuple[Shapes, Shapes]:
    """Write everything but the weights; return the shapes of the model and the speech tokenizer."""
    (folder / "speech_tokenizer").mkdir()
    config = model_config(size, variant, write_text_tokenizer(folder, full=is_full(size)))
    speech = speech_config(size)
    write_json(folder / CONFIG, config)
    write_json(folder / SPEECH_CONFIG, speech)
    write_shared_configs(folder)
    spec = read_spec(folder)
    shapes = talker_shapes(spec.talker) | code_predictor_shapes(spec.code_predictor)
    if spec.voice_encoder is not None:
        shapes |= speaker_encoder_shapes(spec.voice_encoder.speaker)
    speech_shapes = speech_decoder_shapes(spec.speech_decoder)
    return shapes, speech_shapes | speech_encoder_shapes(speech["encoder_config"])


def _save(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, str(file), metadata={"format": "pt"})
    file.chmod(0o644)  # the library creates it for its owner only


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.models.random_checkpoint",
        description="Write a checkpoint with random weights in the released on-disk format.",
    )
    parser.add_argument("out", type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument("--size", choices=get_args(Size), default="tiny")
    parser.add_argument("--variant", choices=get_args(TaskType), default="custom_voice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eos", choices=get_args(Eos), default="natural")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    write_checkpoint(
        args.out,
        size=args.size,
        variant=args.variant,
        seed=args.seed,
        eos=args.eos,
        device=args.device,
    )


if __name__ == "__main__":
    main()
