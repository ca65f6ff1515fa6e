"""A folder of objects that cannot be read is no empty one."""

from pathlib import Path

import pytest

from serve_app.storage.objects import Folder
from tests.small_disk import small_disk


def test_a_folder_that_cannot_be_listed_is_an_error_and_one_that_is_not_there_is_empty(
    tmp_path: Path,
) -> None:
    assert list(Folder(tmp_path / "nothing").paths("")) == []
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for root in (tmp_path / ("a" * 300), loop):
        with pytest.raises(OSError, match=root.name):
            list(Folder(root).paths(""))


def test_a_folder_that_goes_while_others_are_listed_is_left_out(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name in ("a", "b", "c"):
        folder.write(f"{name}/object", b"")
    listing = folder.paths("")
    found = [next(listing)]
    for name in {"a", "b", "c"} - {found[0].partition("/")[0]}:
        folder.delete_folder(name)
    assert found + list(listing) == found


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as place:
        folder = Folder(place)
        folder.write("voices/a", b"old")
        for name in ("voices/a", "voices/b"):
            with pytest.raises(OSError, match="No space left"):
                folder.write(name, bytes(1 << 20))
        assert folder.read("voices/a") == b"old"
        assert [path.name for path in (place / "voices").iterdir()] == ["a"]
        folder.write("voices/a", b"new")
        assert folder.read("voices/a") == b"new"
