"""Files that a crash or another writer never leaves half written, and that nobody tidies away."""

import fcntl
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, data: bytes) -> None:
    """`data` as the file `path`, or what was there before."""
    write_with(path, lambda file: file.write(data))


def write_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """What `write` writes as the file `path`, or what was there before.

    Each writer has a file of its own until it is renamed, so that two of them do not mix.

    Raises what `write` raises, and OSError.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with draft.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring what was renamed within a folder to the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def keep_from_cleaners(folder: Path) -> None:
    """For as long as this process lives, have what removes old files leave those in `folder`.

    Many systems clear /tmp of what nobody has touched for some days. systemd-tmpfiles passes by a
    folder that is locked (tmpfiles.d(5)); a file system without locks has no such cleaner.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # closed by the end of the process
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
