"""Who works on a job, where several servers share the folder that it is in.

A job's folder has the files `lease.1`, `lease.2` ...; whoever created the last one owns the job,
and creating one is what only one of several can do, over NFS as well. An owner rewrites its file;
where the content stays the same for long enough, by the clock of the one who looks, the next number
may be taken. No clocks are compared, and no lease is ever taken from an owner that is alive.
"""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

_RELEASED: Final = b"released"


class Lease:
    """The right to work on one job, until `release` or until somebody else finds it unattended."""

    def __init__(self, folder: Path, number: int, owner: str) -> None:
        self._folder = folder
        self._number = number
        self._owner = owner
        self._beats = 0

    @property
    def is_held(self) -> bool:
        """Whether nobody has taken over; False as well where the job is gone."""
        own, following = (_file(self._folder, self._number + n) for n in (0, 1))
        return own.exists() and not following.exists()

    def renew(self) -> bool:
        """Show that the owner is alive; False where it is too late."""
        if not self.is_held:
            return False
        self._beats += 1
        try:
            self._write(f"{self._owner} {self._beats:012d}".encode())
        except FileNotFoundError:
            return False
        return True

    def release(self) -> None:
        """Let anyone take over at once."""
        if self.is_held:
            self._write(_RELEASED)

    def _write(self, content: bytes) -> None:
        # In place: a new file of this name would look like a lease that was just taken.
        target = os.open(_file(self._folder, self._number), os.O_WRONLY)
        try:
            os.pwrite(target, content, 0)
            os.ftruncate(target, len(content))
            os.fsync(target)
        finally:
            os.close(target)


class Leases:
    """The leases of one server.

    Args:
        owner: unique among all servers.
        unattended_s: how long a lease has to stay unchanged until it is taken over.
    """

    def __init__(
        self, owner: str, unattended_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._owner = owner
        self._unattended_s = unattended_s
        self._clock = clock
        self._seen: dict[Path, tuple[tuple[int, bytes], float]] = {}

    def claim(self, folder: Path) -> Lease | None:
        """The lease of the job in `folder`, or None while somebody else may be at work on it.

        Raises:
            OSError: the folder cannot be used, above all: the job is gone.
        """
        number = max(
            (int(file.suffix[1:]) for file in folder.glob("lease.*") if file.suffix[1:].isdigit()),
            default=0,
        )
        if number and not self._is_unattended(folder, number):
            return None
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            os.close(os.open(_file(folder, number + 1), flags, 0o644))
        except FileExistsError:
            return None
        self._seen.pop(folder, None)
        lease = Lease(folder, number + 1, self._owner)
        return lease if lease.renew() else None

    def forget_others(self, folders: Collection[Path]) -> None:
        """Keep what was seen of the jobs in these folders only: there are no others."""
        self._seen = {folder: seen for folder, seen in self._seen.items() if folder in folders}

    def _is_unattended(self, folder: Path, number: int) -> bool:
        content = _file(folder, number).read_bytes()
        if content == _RELEASED:
            return True
        found, since_s = self._seen.get(folder, (None, 0.0))
        if found != (number, content):
            self._seen[folder] = ((number, content), self._clock())
            return False
        return self._clock() - since_s >= self._unattended_s


def _file(folder: Path, number: int) -> Path:
    return folder / f"lease.{number}"
