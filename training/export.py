"""Write what was trained as a checkpoint in the released on-disk format."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.codec import Codec
from training.talker import TalkerModel

# float16 keeps three bits more than bfloat16, and no weight of the speech tokenizer is large.
_SPEECH_DTYPE = torch.float16
_MODEL_DTYPE = torch.bfloat16


@torch.no_grad()
def round_to_disk(codec: Codec) -> None:
    """Round the codec's weights to what the file will hold, so that codes do not change later."""
    for parameter in codec.speech.parameters():
        parameter.copy_(parameter.to(_SPEECH_DTYPE).float())
    entries = codec.books.entries.to(_SPEECH_DTYPE).float()
    codec.books.usage.fill_(1.0)
    codec.books.total.copy_(entries)


@torch.no_grad()
def speech_tensors(codec: Codec) -> dict[str, Tensor]:
    """Return the speech tokenizer's tensors by their names in the file."""
    tensors = dict(codec.speech.state_dict())
    for name in list(tensors):
        if name.endswith(("cluster_usage", "initialized")):
            tensors[name] = torch.ones_like(tensors[name])
    for book, entries in enumerate(codec.books.entries):
        for name in book_names(book):
            if name not in tensors:
                raise KeyError(f"the reference's tokenizer has no {name}")
            tensors[name] = entries
    return {name: _stored(tensor, _SPEECH_DTYPE) for name, tensor in tensors.items()}


def book_names(book: int) -> tuple[str, str]:
    """Return the names of a codebook's entries in the file: the decoder's, the encoder's."""
    part, side, layer = (
        ("rvq_first", "semantic", 0) if book == 0 else ("rvq_rest", "acoustic", book - 1)
    )
    return (
        f"decoder.quantizer.{part}.vq.layers.{layer}._codebook.embedding_sum",
        f"encoder.quantizer.{side}_residual_vector_quantizer.layers.{layer}.codebook.embed_sum",
    )


def model_tensors(model: TalkerModel) -> dict[str, Tensor]:
    """Return the tensors of talker and code predictor by their names in the file."""
    return {
        f"talker.{name}": _stored(tensor, _MODEL_DTYPE)
        for name, tensor in model.talker.state_dict().items()
    }


def write_heads(
    file: Path, codec: Codec, critics: nn.Module | None, talker: TalkerModel | None
) -> None:
    """Write what training needs and no checkpoint holds, for `resume`."""
    heads = {"codec": codec.phonemes.state_dict()}
    if critics is not None:
        heads["critics"] = critics.state_dict()
    if talker is not None:
        heads["talker"] = talker.phonemes.state_dict()
    halved = {
        name: {key: _stored(tensor, torch.bfloat16) for key, tensor in state.items()}
        for name, state in heads.items()
    }
    torch.save(halved, file)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous().clone()


def write_speech(folder: Path, codec: Codec) -> None:
    """Write speech_tokenizer/model.safetensors."""
    file = folder / "speech_tokenizer/model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(speech_tensors(codec), str(file), metadata={"format": "pt"})
    file.chmod(0o644)


def write_model(folder: Path, model: TalkerModel) -> None:
    """Write model.safetensors."""
    file = folder / "model.safetensors"
    save_file(model_tensors(model), str(file), metadata={"format": "pt"})
    file.chmod(0o644)
