"""A kit comes out as it went in, and says what is wrong with it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.kit import LIST, KitError, pack, unpack, write
from training.plan import TEACHER_VOICES


@pytest.fixture
def contents(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "from/start/speech_tokenizer"
    folder.mkdir(parents=True)
    # What cannot be compressed, so that there are pieces.
    noise = b"".join(hash_of(i) for i in range(3000))
    (folder / "model.safetensors").write_bytes(noise)
    (folder.parent / "model.safetensors").write_bytes(noise[::-1])
    (folder.parent / "config.json").write_text("{}")
    (tmp_path / "from/plan.tsv").write_text("1\theart\t5 6\tYes.\n")
    return {name: tmp_path / "from" / name for name in ("start", "plan.tsv")}


def hash_of(number: int) -> bytes:
    from hashlib import sha256

    return sha256(str(number).encode()).digest()


def files(folder: Path) -> dict[str, bytes]:
    found = (each for each in folder.rglob("*") if each.is_file())
    return {str(each.relative_to(folder)): each.read_bytes() for each in found}


def test_pieces_keep_the_limit_and_join_to_the_same_bytes(
    contents: dict[str, Path], tmp_path: Path
) -> None:
    pieces = write(contents, tmp_path / "kit", 50_000)
    assert len(pieces) == 4
    sizes = [(tmp_path / "kit" / piece.name).stat().st_size for piece in pieces]
    assert sizes == [piece.size for piece in pieces]
    assert sizes[:-1] == [50_000] * 3
    assert 0 < sizes[-1] <= 50_000
    names = unpack([tmp_path / "kit"], tmp_path / "work")
    assert names == ["plan.tsv", "start"]
    assert files(tmp_path / "work") == files(tmp_path / "from")


def test_pieces_may_come_in_several_folders(contents: dict[str, Path], tmp_path: Path) -> None:
    kit, other = tmp_path / "kit", tmp_path / "other"
    write(contents, kit, 50_000)
    other.mkdir()
    for name in ("kit.001", "kit.003"):
        shutil.move(kit / name, other / name)
    unpack([other, kit], tmp_path / "work")
    assert files(tmp_path / "work") == files(tmp_path / "from")


def test_the_same_contents_make_the_same_kit(contents: dict[str, Path], tmp_path: Path) -> None:
    write(contents, tmp_path / "one", 50_000)
    (tmp_path / "from/plan.tsv").touch()
    write(dict(reversed(contents.items())), tmp_path / "two", 50_000)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_missing_and_damaged_pieces_are_all_named(
    contents: dict[str, Path], tmp_path: Path
) -> None:
    kit = tmp_path / "kit"
    write(contents, kit, 50_000)
    (kit / "kit.001").unlink()
    data = bytearray((kit / "kit.003").read_bytes())
    data[7] ^= 1
    (kit / "kit.003").write_bytes(data)
    with pytest.raises(KitError) as said:
        unpack([kit], tmp_path / "work")
    assert str(said.value) == "kit.001 is missing, kit.003 is damaged (of 4 pieces)"
    assert not (tmp_path / "work").exists()
    (kit / LIST).unlink()
    with pytest.raises(KitError, match=rf"no kit\.json in {kit}"):
        unpack([kit], tmp_path / "work")


def test_nothing_is_written_over(contents: dict[str, Path], tmp_path: Path) -> None:
    kit, work = tmp_path / "kit", tmp_path / "work"
    write(contents, kit, 50_000)
    before = files(kit)
    with pytest.raises(KitError, match="has something in it"):
        write(contents, kit, 40_000)
    assert files(kit) == before
    work.mkdir()
    (work / "codec.pt").write_text("hours of training")
    with pytest.raises(KitError, match="has something in it"):
        unpack([kit], work)
    assert files(work) == {"codec.pt": b"hours of training"}
    (work / "codec.pt").unlink()
    unpack([kit], work)
    assert files(work) == files(tmp_path / "from")


def test_all_that_is_missing_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    start = tmp_path / "start"
    start.mkdir()
    plan, heads = tmp_path / "plan.tsv", tmp_path / "heads.pt"
    with pytest.raises(KitError) as said:
        pack(plan, tmp_path / "kit", 50_000, start, also=[heads])
    assert str(plan) in str(said.value)
    assert str(heads) in str(said.value)
    assert "npm" in str(said.value)
    plan.touch()
    with pytest.raises(KitError, match=r"config\.json.*two files model\.safetensors"):
        pack(plan, tmp_path / "kit", 50_000, start, voices=start)
    assert not (tmp_path / "kit").exists()


def test_what_is_given_is_not_fetched(contents: dict[str, Path], tmp_path: Path) -> None:
    voices, teacher = tmp_path / "voices", tmp_path / "kokoro.int8.onnx"
    voices.mkdir()
    for name in TEACHER_VOICES.values():
        (voices / f"{name}.bin").write_bytes(name.encode())
    (voices / "zf_xiaoni.bin").write_bytes(b"another language")
    teacher.write_bytes(b"weights")
    pack(contents["plan.tsv"], tmp_path / "kit", 50_000, contents["start"], teacher, voices, ())
    names = unpack([tmp_path / "kit"], tmp_path / "work")
    assert names == ["kokoro.onnx", "plan.tsv", "start", "voices"]
    taken = {f"{name}.bin" for name in TEACHER_VOICES.values()}
    assert set(files(tmp_path / "work/voices")) == taken
    assert files(tmp_path / "work/start") == files(contents["start"])


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "unpack", str(tmp_path / "work"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"no kit.json in {tmp_path}"
    assert "Traceback" not in done.stderr
