"""A process for the stages that has done its imports before a replica asks for it.

Most of a start is spent on importing torch and vLLM, on one core. A standby does that ahead: while
the launcher starts Ray, and after each start for the replica that comes next. It waits behind a
Unix socket in a folder of its machine; who takes the socket has the process, gives it its own
environment and output, and from then on it is what `process.SpeechProcess` would have started.
"""

import ctypes
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from serve_app.config import CPU_ENV
from serve_app.models.kernel_cache.ahead import fill_beside

_LENGTH: Final = struct.Struct("<I")
_READY: Final = b"r"
# From being taken to being ready: what is left of the imports of a standby that has just begun.
_TAKE_TIMEOUT_S: Final = 180.0
_WATCH_S: Final = 1.0
_CUDA_NOT_INITIALIZED: Final = 3
# /proc/PID/comm of a standby that serves a replica; those that wait have Python's.
TAKEN_NAME: Final = "tts-stages"
_PR_SET_NAME: Final = 15

logger = logging.getLogger(__name__)


class Taken:
    """A standby that belongs to this process; as much of `subprocess.Popen` as its owner needs.

    It is killed when this process goes, however that ends and in whatever state it is.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # The standby is no child, so the kernel does not tie its life to this one's. This shell's
        # input ends with this process.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'read _; kill -9 "$0" 2>/dev/null', str(pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """None while it runs; 0 afterwards, since only its parent learns the exit status."""
        return None if is_running(self.pid) else 0

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: `timeout` seconds were not enough.
        """
        end_s = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end_s is not None and time.monotonic() > end_s:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.02)
        return 0

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start(folder: Path, anchor: int, fill: bool = False, on_cpu: bool = False) -> None:
    """Start a standby that waits in `folder` and ends with the process `anchor`, unless taken.

    Args:
        folder: made if it is not there; its path is short, as a socket's has to be.
        anchor: process id.
        fill: also fill the kernel cache, for the GPUs that are here.
        on_cpu: for stages without a GPU, whether there is one or not.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [
        sys.executable,
        "-m",
        __name__,
        str(folder),
        str(anchor),
        *(["fill"] * fill),
        *(["cpu"] * on_cpu),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # What its imports read; the rest of its environment its owner brings along.
        env={**os.environ, **(CPU_ENV if on_cpu else {}), "PYTHONPATH": path},
        start_new_session=True,
    )
    threading.Thread(target=process.wait, name="standby-reaper", daemon=True).start()


def start_next(folder: Path, anchor: int) -> None:
    """Start a standby unless one that runs waits in `folder` already."""
    if not any(is_running(_pid(path)) for path in folder.glob("*.sock")):
        start(folder, anchor)


def take(folder: Path) -> tuple[socket.socket, Taken] | None:
    """Take a standby out of `folder`; blocks until its imports are done.

    Returns:
        Its end of the conversation, and the process; None where there is none that works.
    """
    for path in sorted(folder.glob("*.sock")):
        claimed = path.with_suffix(".taken")
        try:
            path.rename(claimed)  # by one of those that try
        except OSError:
            continue
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_TAKE_TIMEOUT_S)
            connection.connect(str(claimed))
            hello = {"environment": dict(os.environ), "path": sys.path, "owner": os.getpid()}
            data = pickle.dumps(hello)
            socket.send_fds(connection, [_LENGTH.pack(len(data))], [1, 2])
            connection.sendall(data)
            if connection.recv(1) == _READY:
                connection.settimeout(None)
                return connection, Taken(_pid(path))
            logger.warning("standby process %d ended when it was taken", _pid(path))
        except OSError as error:
            logger.warning("standby process %d does not answer: %s", _pid(path), error)
        finally:
            claimed.unlink(missing_ok=True)
        connection.close()
    return None


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what is left of one."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # another user's, or a system without /proc
        return True
    return state != "Z"


def _pid(path: Path) -> int:
    return int(path.stem)


def _watch(owner: list[int]) -> None:
    """End this process when the one that it belongs to has ended."""
    while is_running(owner[0]):
        time.sleep(_WATCH_S)
    os._exit(0)


def _cuda_is_initialized() -> bool:
    """Whether this process has chosen its GPUs already, before it knows which are its owner's."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _CUDA_NOT_INITIALIZED


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
    (length,) = _LENGTH.unpack(header)
    with connection.makefile("rb", buffering=0) as file:
        data = b""
        while len(data) < length:
            part = file.read(length - len(data))
            if not part:
                raise EOFError("the owner is gone")
            data += part
    return pickle.loads(data), descriptors


def wait_in(folder: Path, anchor: int, fill: bool, on_cpu: bool) -> socket.socket:
    """Import what the stages need, and wait to be taken; returns the connection to the owner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the launcher's terminal
    owner = [anchor]
    threading.Thread(target=_watch, args=[owner], name="standby-watch", daemon=True).start()
    path = folder / f"{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        # Before the imports: who comes early does better to wait for the rest of them.
        listener.listen(1)
        if fill:
            fill_beside()
        # Else asking whether there is a GPU would settle which ones this process sees.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        import_stages(on_cpu)
        connection, _ = listener.accept()
    if _cuda_is_initialized():
        logger.warning("importing the stages has initialized CUDA: this standby is of no use")
        sys.exit(1)
    hello, descriptors = _receive(connection)
    owner[0] = hello["owner"]
    os.environ.clear()
    os.environ.update(hello["environment"])
    sys.path[:] = hello["path"]
    for standard, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, TAKEN_NAME.encode())
    connection.sendall(_READY)
    return connection


def import_stages(on_cpu: bool) -> None:
    """Import what `FusedSpeech.load` would, vLLM above all."""
    import torch

    from serve_app.models.fused import speech

    has_gpu = not on_cpu and Path("/dev/nvidiactl").exists()
    speech.import_stages(torch.device("cuda" if has_gpu else "cpu"))


if __name__ == "__main__":
    from serve_app.models.fused.process import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s -- %(message)s")
    options = sys.argv[3:]
    serve(wait_in(Path(sys.argv[1]), int(sys.argv[2]), "fill" in options, "cpu" in options))
