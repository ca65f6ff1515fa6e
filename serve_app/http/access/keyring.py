"""The keys that are valid now: of the file, as it is at present, and of the environment."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from serve_app.keys import key_file
from serve_app.keys.digest import digest_of, same
from serve_app.keys.key_file import Key, KeyFileError

_LOOK_EVERY_S: Final = 1.0

logger = logging.getLogger(__name__)


class Keyring:
    """Finds the entry of a key.

    A file that cannot be read when this is made is an error: a server that was to be locked does
    not start open. Later the keys that were last known stay valid until it can be read again.

    Args:
        files: of keys, each as `keys.key_file` has it.
        fixed: keys that no file has.

    Raises:
        KeyFileError: a file cannot be used, or two places have the same name.
    """

    def __init__(
        self,
        files: Sequence[Path] = (),
        fixed: Sequence[Key] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = tuple(files)
        self._fixed = tuple(fixed)
        self._clock = clock
        self._looked_s = clock()
        self._state = self._look()
        self._keys = self._read()

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for, because nothing names any.

        A file that has become empty locks everybody out.
        """
        return not self._files and not self._fixed

    @property
    def keys(self) -> tuple[Key, ...]:
        """Those that are valid now; looks at most once a second whether a file has changed."""
        now_s = self._clock()
        if self._files and now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            state = self._look()
            if state != self._state:
                self._state = state
                self._reload()
        return self._keys

    def find(self, key: str) -> Key | None:
        """The entry of `key`; takes as long whether and where it is found."""
        digest, found = digest_of(key), None
        for entry in self.keys:
            if same(entry.hash, digest):
                found = entry
        return found

    def _reload(self) -> None:
        try:
            self._keys = self._read()
        except KeyFileError as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("read the API keys again: %s", ", ".join(key.name for key in self._keys))

    def _read(self) -> tuple[Key, ...]:
        keys = [*self._fixed]
        for path in self._files:
            for key in key_file.read(path):
                if any(key.name == known.name for known in keys):
                    raise KeyFileError(f"{path}: {key.name!r} is the name of another key as well")
                keys.append(key)
        return tuple(keys)

    def _look(self) -> list[tuple[int, int, int] | None]:
        """What changes with the files: Kubernetes replaces them, editors write into them."""
        return [_identity(path) for path in self._files]


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
