"""What Ray and HAProxy take of the system, and do not start without."""

import errno
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from serve_app.check.finding import Finding
from serve_app.config import Environment

_MIB: Final = 1 << 20
# Less does not hold the logs of a start; with less than the other, those of a long life do not fit.
_LEAST_TEMPORARY_MIB: Final = 32
_ENOUGH_TEMPORARY_MIB: Final = 1024
# Of Ray's sockets, below the folder for temporary files: the session is named by date, time and
# process.
_LONGEST_SOCKET: Final = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_MAX_SOCKET_BYTES: Final = 107
# HAProxy does not start with less than its 4,096 connections, of two files each, may take.
_LEAST_FILES: Final = 10_500
# A server of one replica each has some 900 threads on two cores, and each core adds to them.
_LEAST_THREADS: Final = 1_000
_CGROUP: Final = Path("/sys/fs/cgroup")
_SHM: Final = Path("/dev/shm")
# Ray's store is no smaller. Where it finds less room than it wants, it is in the folder for
# temporary files; it looks for no right to write.
_LEAST_STORE_MIB: Final = 75


def system(cgroup: Path = _CGROUP, shm: Path = _SHM) -> list[Finding]:
    """What is missing; one that starts says nothing of them."""
    return [*_temporary(), *_shared(shm), *_files(), *_threads(cgroup), *_names()]


def _temporary() -> Iterator[Finding]:
    """Ray's folder, and the one of all else, which may be another."""
    of_ray = Environment.read().ray_temporary
    for folder in dict.fromkeys((of_ray, _of_others())):
        remedy = f"TMPDIR={'/var/tmp' if str(folder) == '/tmp' else '/tmp'}, or another folder"
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            says = f"temporary files cannot be kept in {folder}: {there} cannot be written to"
            yield Finding("machine", "missing", says, remedy)
            continue
        free_mib = shutil.disk_usage(there).free / _MIB
        if free_mib < _ENOUGH_TEMPORARY_MIB:
            state = "missing" if free_mib < _LEAST_TEMPORARY_MIB else "note"
            says = f"{free_mib:.0f} MiB free for temporary files in {folder}, where the logs are"
            yield Finding("machine", state, says, f"free 1 GiB, or {remedy}")
    if len(os.fsencode(of_ray)) + len(_LONGEST_SOCKET) > _MAX_SOCKET_BYTES:
        says = f"TMPDIR {of_ray} is too long for the paths of Ray's sockets"
        yield Finding("machine", "missing", says, "RAY_TMPDIR=/tmp, or another short one")


def _shared(shm: Path) -> Iterator[Finding]:
    """Shared memory, where Ray keeps its store; that there is little of it only makes it slower."""
    remedy = f"mount -t tmpfs -o mode=1777 tmpfs {shm}, or docker run --shm-size=2g"
    try:
        listed = os.open(shm, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        says = f"there is no shared memory for Ray: {shm}: {error.strerror}"
        yield Finding("machine", "missing", says, remedy)
        return
    os.close(listed)
    try:
        with tempfile.NamedTemporaryFile(dir=shm):
            return
    except OSError as error:
        if error.errno != errno.ENOSPC and shutil.disk_usage(shm).free / _MIB >= _LEAST_STORE_MIB:
            says = f"shared memory cannot be written to, and Ray does: {shm}: {error.strerror}"
            yield Finding("machine", "missing", says, remedy)


def _of_others() -> Path:
    """Where Python has temporary files, which looks for a folder that can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # there is none
        return Path("/tmp")


def _files() -> Iterator[Finding]:
    """Open files; what is allowed beyond the present number Ray and HAProxy take by themselves."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _LEAST_FILES:
        says = f"{most} open files are allowed, HAProxy takes {_LEAST_FILES}"
        remedy = "ulimit -Hn 65536, docker run --ulimit nofile=65536, LimitNOFILE= of systemd"
        yield Finding("machine", "missing", says, remedy)


def _threads(cgroup: Path) -> Iterator[Finding]:
    """Processes and threads: of this user, unless that is root, and of this container."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.getuid() != 0 and limit != resource.RLIM_INFINITY:
        left = limit - _threads_of(os.getuid())
        if left < _LEAST_THREADS:
            says = f"this user may have {left} more threads, a server some {_LEAST_THREADS}"
            yield Finding("machine", "missing", says, "ulimit -u 4096, LimitNPROC= of systemd")
    with suppress(OSError, ValueError):  # none is set, or none can be seen
        allowed, has = ((cgroup / f"pids.{name}").read_text() for name in ("max", "current"))
        left = int(allowed) - int(has)
        if left < _LEAST_THREADS:
            says = f"this container may have {left} more threads, a server some {_LEAST_THREADS}"
            yield Finding("machine", "missing", says, "docker run --pids-limit=-1, TasksMax=")


def _threads_of(user: int) -> int:
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if process.stat().st_uid == user:
                count += len(os.listdir(process / "task"))
    return count


def _names() -> Iterator[Finding]:
    if sys.getfilesystemencoding() != "utf-8":
        says = f"Python takes names of files for {sys.getfilesystemencoding()}"
        yield Finding("machine", "missing", says, "unset PYTHONUTF8, or LANG=C.UTF-8")
