"""What a checkpoint consists of, and what two have in common."""

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.memory.parts import PARTS, bytes_of, equal_parts, main


def test_the_parts_are_all_that_the_file_of_the_model_holds(tiny_checkpoint) -> None:
    folder = tiny_checkpoint()
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    sizes = bytes_of(read_spec(folder))
    assert tuple(sizes) == PARTS
    assert sum(sizes.values()) - sizes["speech decoder"] == stored


def test_parts_are_equal_where_their_weights_are(tiny_checkpoint, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tiny_checkpoint(seed=1)
    shutil.copytree(tiny_checkpoint(), same)
    shutil.copy(other / "model.safetensors", same / "model.safetensors")
    found = equal_parts([tiny_checkpoint(), same, other])
    assert found["speech decoder"] == [[tiny_checkpoint().name, "same"]]
    assert found["talker"] == found["text embedding"] == [["same", other.name]]


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        equal_parts([tmp_path])


def test_the_command_says_both(tiny_checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tiny_checkpoint()), str(tiny_checkpoint(seed=1))])
    said = capsys.readouterr().out
    assert "speech decoder: different in each" in said
    assert said.startswith("| MiB of bfloat16 |")
