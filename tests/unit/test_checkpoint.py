"""Checkpoints: found, verified, read; written once and completely."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.embedded import embedded_checkpoint
from serve_app.models.checkpoint.files import (
    MODEL_WEIGHTS,
    SPEECH_WEIGHTS,
    folder_fault,
    open_checkpoint,
)
from serve_app.models.checkpoint.locate import KNOWN_REVISIONS, locate
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.shapes import code_predictor_shapes, talker_shapes
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer, check_merges
from serve_app.models.random_checkpoint.tokenizer import write_text_tokenizer
from serve_app.models.random_checkpoint.write import (
    Size,
    write_checkpoint,
    write_configuration,
)
from serve_app.types import TaskType
from tests.conftest import TinyCheckpoint


@pytest.fixture
def copy(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint(), tmp_path / "copy"))


def rewrite(file: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(str(file))
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, str(file), metadata={"format": "pt"})


@pytest.mark.parametrize("variant", ["custom_voice", "voice_design", "base"])
@pytest.mark.parametrize("size", ["tiny", "tiny-0b6"])
def test_what_is_written_opens(tiny_checkpoint: TinyCheckpoint, variant: str, size: str) -> None:
    opened = open_checkpoint(tiny_checkpoint(variant, size))
    head = opened.tensors("talker.codec_head.")["weight"]
    assert head.dtype == torch.bfloat16
    assert tuple(head.shape) == (3072, opened.spec.talker.transformer.hidden_size)
    assert opened.speech_tokenizer_tensors("decoder.decoder.6.conv.")["bias"].dtype == torch.float32
    assert opened.tensors("no such prefix") == {}
    assert pickle.loads(pickle.dumps(opened)) == opened


@pytest.mark.parametrize(
    "file", [MODEL_WEIGHTS, SPEECH_WEIGHTS, "generation_config.json", "vocab.json", "merges.txt"]
)
@pytest.mark.parametrize("content", [None, "5"])
def test_a_folder_that_cannot_be_served_is_told_by_its_file(
    copy: Path, file: str, content: str | None
) -> None:
    assert folder_fault(copy) is None
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content, encoding="utf-8")
    found = folder_fault(copy)
    assert found is not None
    assert file.rpartition("/")[2] in found


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_merges_that_have_lost_their_end_are_refused(copy: Path, kept: float) -> None:
    file = copy / "merges.txt"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[: int(kept * len(lines))]), encoding="utf-8")
    assert TextTokenizer.from_dir(copy)  # so that nothing else would say it
    assert f"{file}: makes no " in (folder_fault(copy) or "")


def test_merges_may_leave_out_what_only_fills_a_released_vocabulary(tmp_path: Path) -> None:
    write_text_tokenizer(tmp_path, full=True)
    assert any(token.startswith("<unused ") for token in _vocabulary(tmp_path))
    check_merges(tmp_path)
    file = tmp_path / "merges.txt"
    file.write_text(file.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    with pytest.raises(CheckpointError, match="makes no"):
        check_merges(tmp_path)


def _vocabulary(folder: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return found


def test_looking_at_headers_takes_no_torch(copy: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from serve_app.models.checkpoint.files import folder_fault\n"
        "assert folder_fault(Path(sys.argv[1])) is None\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(copy)], check=True, timeout=60)


def test_the_released_names_are_expected(tiny_checkpoint: TinyCheckpoint) -> None:
    spec = open_checkpoint(tiny_checkpoint("custom_voice", "tiny")).spec
    names = talker_shapes(spec.talker)
    # Tensors per talker layer, final norm, two embeddings, projection, head.
    assert len(names) == 11 * spec.talker.transformer.num_layers + 1 + 2 + 4 + 1
    assert names["talker.model.layers.0.self_attn.q_proj.weight"] == (128, 64)
    predictor = code_predictor_shapes(spec.code_predictor)
    assert predictor["talker.code_predictor.model.codec_embedding.14.weight"] == (2048, 64)
    assert predictor["talker.code_predictor.small_to_mtp_projection.weight"] == (32, 64)


@pytest.mark.parametrize(
    ("size", "variant", "tensors", "parameters"),
    [
        ("0.6b", "custom_voice", 402, 905_788_672),
        ("0.6b", "base", 478, 914_643_008),
        ("1.7b", "voice_design", 404, 1_916_676_352),
        ("1.7b", "base", 480, 1_928_677_440),
    ],
)
def test_full_sizes_have_the_released_names_and_ids(
    tmp_path: Path, size: Size, variant: TaskType, tensors: int, parameters: int
) -> None:
    shapes, speech_shapes = write_configuration(tmp_path, size=size, variant=variant)
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == parameters
    assert len(speech_shapes) == 496
    assert sum(map(math.prod, speech_shapes.values())) == 170_557_441
    text = read_spec(tmp_path).text
    assert (text.im_start_id, text.assistant_id, text.tts_pad_id) == (151644, 77091, 151671)
    frame = TextTokenizer.from_dir(tmp_path).encode("<|im_start|>assistant\n<tts_pad>")
    assert frame == [151644, 77091, 198, 151671]


def test_shards_open_as_one_file_does(copy: Path) -> None:
    whole = load_file(str(copy / MODEL_WEIGHTS))
    names = sorted(whole)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f"model-{i}.safetensors"
        save_file(
            {name: whole[name] for name in part}, str(copy / shard), metadata={"format": "pt"}
        )
        weight_map |= dict.fromkeys(part, shard)
    (copy / MODEL_WEIGHTS).unlink()
    (copy / f"{MODEL_WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = open_checkpoint(copy).tensors("")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_wrong_shape_is_refused_with_both_shapes(copy: Path) -> None:
    rewrite(copy / MODEL_WEIGHTS, "talker.codec_head.weight", torch.zeros(3072, 63))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(copy)
    assert caught.value.file.endswith(MODEL_WEIGHTS)
    assert "talker.codec_head.weight" in caught.value.reason
    assert "[3072, 64]" in caught.value.reason
    assert "[3072, 63]" in caught.value.reason


def test_a_missing_tensor_is_refused_by_name(copy: Path) -> None:
    rewrite(copy / SPEECH_WEIGHTS, "decoder.decoder.5.alpha", None)
    with pytest.raises(CheckpointError, match=r"speech_tokenizer.*decoder\.decoder\.5\.alpha"):
        open_checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 100, 100_000])
def test_a_truncated_file_is_refused(copy: Path, keep: int) -> None:
    file = copy / MODEL_WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / SPEECH_WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="speech_tokenizer"):
        open_checkpoint(copy)


def test_a_local_folder_is_located_without_the_hub(tiny_checkpoint: TinyCheckpoint) -> None:
    path = tiny_checkpoint()
    assert locate(str(path), None) == path.resolve()


@pytest.mark.parametrize("model", ["/no/such/folder", "someone/unknown-model", "three/part/name"])
def test_what_cannot_be_pinned_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match=r"revision|neither"):
        locate(model, None)


def test_a_release_is_described_offline_by_its_configuration_alone(tmp_path: Path) -> None:
    model, revision = next(iter(KNOWN_REVISIONS.items()))
    assert len(revision) == 40
    folder = tmp_path / "hub" / f"models--{model.replace('/', '--')}" / "snapshots" / revision
    folder.mkdir(parents=True)
    write_configuration(folder, size="0.6b", variant="custom_voice")
    source = f"""
from serve_app.config import AppConfig
from serve_app.models.checkpoint.card import describe
from serve_app.models.checkpoint.locate import description_folder
config = AppConfig(model={model!r})
print(describe(config, description_folder(config)).path)
"""
    # Read by the hub's library when it is imported.
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", source], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(folder)


def test_weights_depend_on_the_seed_alone(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again", size="tiny", variant="custom_voice", seed=0)
    for file in (MODEL_WEIGHTS, SPEECH_WEIGHTS, "vocab.json", "merges.txt", "config.json"):
        written = (tmp_path / "again" / file).read_bytes()
        assert written == (tiny_checkpoint() / file).read_bytes(), file
        if file == MODEL_WEIGHTS:
            assert written != (tiny_checkpoint(seed=1) / file).read_bytes()


def test_an_existing_checkpoint_is_never_overwritten(copy: Path) -> None:
    with pytest.raises(FileExistsError):
        write_checkpoint(copy, size="tiny", variant="custom_voice")


def test_the_embedded_checkpoint_is_whole_and_small() -> None:
    folder = embedded_checkpoint()
    spec = open_checkpoint(folder).spec
    card = spec.card("voice", str(folder), embedded=True)
    assert len(card.voices) == 4
    assert set(card.voice_aliases.values()) <= set(card.voices)
    assert card.voice_aliases["alloy"] in card.voices
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 20 << 20
    assert (folder / "README.md").is_file()
