"""Objects of a shared folder or an object store, by path; each appears as a whole or not at all.

A folder of this machine, or one that is mounted, is written as files are: a draft, flushed, and
renamed. Anything else is reached through fsspec. Every method blocks and belongs on a thread.
"""

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import fsspec

from serve_app.storage.files import write_whole

# Where an object that is put is there at once and whole, and renaming would be a copy.
_OBJECT_STORES: Final = ("memory", "s3", "s3a", "gs", "gcs", "abfs", "az", "oci", "r2")
# A draft begins with it; a crash may leave one.
_DRAFT: Final = "."
_LEFTOVER_S: Final = 3600.0


class Storage(Protocol):
    """Paths are relative, with slashes, and made by us: no name that somebody gave is part of one.

    All methods raise OSError (an object store's own errors are brought to it).
    """

    def read(self, path: str) -> bytes | None:
        """The object, or None."""
        ...

    def read_all(self, paths: Iterable[str]) -> Mapping[str, bytes]:
        """Those of several objects that are there."""
        ...

    def write(self, path: str, data: bytes) -> None: ...

    def delete(self, path: str) -> bool:
        """Remove an object; whether it was there."""
        ...

    def delete_folder(self, path: str) -> None: ...

    def paths(self, folder: str) -> Iterator[str]:
        """All objects below a folder."""
        ...

    def clean(self) -> None:
        """Remove what writers that were killed have left behind."""
        ...


class Folder:
    """A folder of this machine's file system, made when something is first written to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_all(self, paths: Iterable[str]) -> Mapping[str, bytes]:
        found = ((path, self.read(path)) for path in paths)
        return {path: data for path, data in found if data is not None}

    def write(self, path: str, data: bytes) -> None:
        place = self.root / path
        if not place.parent.is_dir():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, data)

    def delete(self, path: str) -> bool:
        try:
            (self.root / path).unlink()
        except FileNotFoundError:
            return False
        return True

    def delete_folder(self, path: str) -> None:
        shutil.rmtree(self.root / path, ignore_errors=True)

    def paths(self, folder: str) -> Iterator[str]:
        for place, _, names in os.walk(self.root / folder, onerror=_raise_unless_gone):
            below = PurePosixPath(Path(place).relative_to(self.root).as_posix())
            for name in names:
                if not name.startswith(_DRAFT):
                    yield str(below / name)

    def clean(self) -> None:
        for place, _, names in os.walk(self.root):
            for name in names:
                draft = Path(place) / name
                with suppress(FileNotFoundError):  # another server cleans as well
                    if name.startswith(_DRAFT) and _age_s(draft) > _LEFTOVER_S:
                        draft.unlink()


def _raise_unless_gone(error: OSError) -> None:
    """A folder that cannot be read is not an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


class Remote:
    """Anything that fsspec knows."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        # Another server's writes must be seen: nothing of a listing may be remembered.
        fresh = {"use_listings_cache": False, "skip_instance_cache": True}
        self._files, self._root = fsspec.core.url_to_fs(url, **{**fresh, **options})
        protocol = self._files.protocol
        names = (protocol,) if isinstance(protocol, str) else protocol
        self._puts = any(name in _OBJECT_STORES for name in names)

    def read(self, path: str) -> bytes | None:
        try:
            return bytes(self._files.cat_file(self._place(path)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _as_os_error(error) from error

    def read_all(self, paths: Iterable[str]) -> Mapping[str, bytes]:
        """All at once, where the object store takes it."""
        places = {self._place(path): path for path in paths}
        if not places:
            return {}
        try:
            found = self._files.cat(list(places), on_error="return")
        except Exception as error:
            raise _as_os_error(error) from error
        read: dict[str, bytes] = {}
        for place, data in found.items():
            if isinstance(data, bytes):
                read[places[place]] = data
            elif not isinstance(data, FileNotFoundError):
                raise _as_os_error(data)
        return read

    def write(self, path: str, data: bytes) -> None:
        place = self._place(path)
        try:
            if self._puts:
                self._files.pipe_file(place, data)
                return
            folder, _, name = place.rpartition("/")
            self._files.makedirs(folder, exist_ok=True)
            draft = f"{folder}/{_DRAFT}{name}.{secrets.token_hex(6)}"
            try:
                self._files.pipe_file(draft, data)
                self._files.mv(draft, place)
            except BaseException:
                with suppress(Exception):
                    self._files.rm_file(draft)
                raise
        except Exception as error:
            raise _as_os_error(error) from error

    def delete(self, path: str) -> bool:
        try:
            if not self._files.exists(self._place(path)):
                return False
            self._files.rm_file(self._place(path))
        except FileNotFoundError:
            return False
        except Exception as error:
            raise _as_os_error(error) from error
        return True

    def delete_folder(self, path: str) -> None:
        try:
            self._files.rm(self._place(path), recursive=True)
        except FileNotFoundError:
            return
        except Exception as error:
            raise _as_os_error(error) from error

    def paths(self, folder: str) -> Iterator[str]:
        try:
            self._files.invalidate_cache()
            found = self._files.find(self._place(folder))
        except FileNotFoundError:
            return
        except Exception as error:
            raise _as_os_error(error) from error
        root = self._root.strip("/")
        for place in found:
            path = str(place).strip("/").removeprefix(root).strip("/")
            if not path.rpartition("/")[2].startswith(_DRAFT):
                yield path

    def clean(self) -> None:
        return

    def _place(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"


def _as_os_error(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")


def storage_at(place: str, options: Mapping[str, Any]) -> Storage:
    """The storage of a folder, or of a URL that fsspec understands.

    Raises:
        ImportError: the package that speaks the URL's protocol is not installed.
        ValueError: nothing speaks it.
    """
    if "://" not in place:
        return Folder(Path(place).expanduser())
    if place.startswith("file://"):
        return Folder(Path(place.removeprefix("file://")).expanduser())
    return Remote(place, options)
