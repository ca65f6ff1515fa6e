"""What checkpoints consist of, by bytes, and which parts several of them have in common.

python -m serve_app.models.memory.parts                  # the released sizes, by configuration
python -m serve_app.models.memory.parts FOLDER FOLDER    # these, and what is equal in them
"""

import argparse
import hashlib
import json
import math
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.shapes import (
    Shapes,
    code_predictor_shapes,
    speech_decoder_shapes,
    talker_shapes,
)
from serve_app.models.checkpoint.spec import ModelSpec

# On a GPU all of it is bfloat16, unless a `dtype` says otherwise.
_ITEMSIZE: Final = 2
_MIB: Final = 1 << 20
_TEXT_EMBEDDING: Final = "talker.model.text_embedding.weight"
PARTS: Final = ("text embedding", "talker", "code predictor", "speech decoder")
_RELEASED: Final = ("0.6b", "1.7b")


def bytes_of(spec: ModelSpec) -> dict[str, int]:
    """Bytes of each of PARTS in memory, as they follow from the facts of a checkpoint."""
    return {part: _ITEMSIZE * _values(shapes) for part, shapes in _shapes(spec).items()}


def equal_parts(folders: Sequence[Path]) -> dict[str, list[list[str]]]:
    """For each of PARTS the names of the folders by equal content, those that are alone left out.

    Raises:
        OSError: a folder lacks its weights.
    """
    found: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for folder in folders:
        tensors = _Tensors(folder)
        for part, shapes in _shapes(read_spec(folder)).items():
            found[part].setdefault(tensors.digest(shapes), []).append(folder.name)
    return {
        part: [names for names in groups.values() if len(names) > 1]
        for part, groups in found.items()
    }


class _Tensors:
    """Where the tensors of a checkpoint's files are: without a library, as only bytes matter."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        files = sorted((*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")))
        if not files:
            raise FileNotFoundError(f"{folder} has no weights")
        for file in files:
            with file.open("rb") as data:
                (length,) = struct.unpack("<Q", data.read(8))
                header: Mapping[str, Any] = json.loads(data.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    self._places[name] = (file, 8 + length + begin, end - begin)

    def digest(self, shapes: Shapes) -> str:
        total = hashlib.sha256()
        for name in sorted(shapes):
            file, begin, size = self._places[name]
            with file.open("rb") as data:
                data.seek(begin)
                while size > 0 and (piece := data.read(min(size, 16 * _MIB))):
                    total.update(piece)
                    size -= len(piece)
        return total.hexdigest()


def _shapes(spec: ModelSpec) -> dict[str, Shapes]:
    talker = dict(talker_shapes(spec.talker))
    embedding = {_TEXT_EMBEDDING: talker.pop(_TEXT_EMBEDDING)}
    predictor = code_predictor_shapes(spec.code_predictor)
    decoder = speech_decoder_shapes(spec.speech_decoder)
    return dict(zip(PARTS, (embedding, talker, predictor, decoder), strict=True))


def _values(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _rows(names: Sequence[str], specs: Sequence[ModelSpec]) -> list[str]:
    head = ["MiB of bfloat16", *PARTS, "all"]
    rows = [head, ["---"] * len(head)]
    for name, spec in zip(names, specs, strict=True):
        sizes = list(bytes_of(spec).values())
        rows.append([name, *(f"{size / _MIB:.1f}" for size in (*sizes, sum(sizes)))])
    return [f"| {' | '.join(row)} |" for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.models.memory.parts",
        description="Count the bytes of checkpoints by part, and say what is equal in them.",
    )
    parser.add_argument("folder", type=Path, nargs="*", help="default: the released sizes")
    folders: list[Path] = parser.parse_args(arguments).folder
    if not folders:
        print("\n".join(_rows(_RELEASED, [_released(size) for size in _RELEASED])))
        return
    print("\n".join(_rows([f.name for f in folders], [read_spec(f) for f in folders])))
    for part, groups in equal_parts(folders).items():
        said = "; ".join(", ".join(names) for names in groups) or "different in each"
        print(f"{part}: {f'equal in {said}' if groups else said}")


def _released(size: Any) -> ModelSpec:
    from serve_app.models.random_checkpoint.write import write_configuration

    with tempfile.TemporaryDirectory() as folder:
        write_configuration(Path(folder), size=size, variant="custom_voice")
        return read_spec(Path(folder))


if __name__ == "__main__":
    main()
