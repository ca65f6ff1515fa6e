"""The launcher's side of the process that outlives it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from serve_app.launch.keeper.proxies import MARK, end_all

# Who sends them to the keeper means the server, whose end is the keeper's.
NOT_MEANT: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# What is left is killed, not asked.
_END_S: Final = 10.0


@contextmanager
def kept(folder: Path, own_cluster: bool) -> Iterator[None]:
    """When this is left, no HAProxy of `folder` runs any more, and none can be started; on a
    cluster of our own nor does anything else of the server.

    On such a cluster also where this process ends without having left it: another one sees to
    it, in a session of its own and deaf to all signals but SIGKILL, so that it is still there after
    one to the launcher's process group, or to all that a service manager knows of the server.

    Args:
        folder: of `launch.haproxy`; removed when this process has ended.
        own_cluster: Serve, and with it HAProxy, does not outlive this process.
    """
    if not own_cluster or sys.platform != "linux":
        try:
            yield
        finally:
            end_all(folder)
        return
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # Inherited: it takes them when it is prepared for them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_MEANT)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.launch.keeper", str(folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.environ[MARK] = str(folder)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if process.wait(_END_S):  # somebody has killed it
            end_all(folder)
