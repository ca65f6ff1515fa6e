"""`python -m serve_app.launch.keeper FOLDER LAUNCHER`: waits for the end of that process or of its
own input, and then ends what is left of the server. Until then it looks after
what clients are connected to.
"""

import os
import select
import shutil
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Final

from serve_app.launch.keeper.hung import Alone, Loops
from serve_app.launch.keeper.keeper import NOT_MEANT
from serve_app.launch.keeper.proxies import end_all
from serve_app.launch.keeper.standin import Watch

_LOOK_EVERY_S: Final = 0.25


def main(folder: Path, launcher: int) -> None:
    for number in NOT_MEANT:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_MEANT)
    say = partial(print, flush=True)
    looks = (Watch(folder, say), Loops(folder, say), Alone(folder, say))
    while not _is_over(launcher):
        try:
            for look in looks:
                look()
        except Exception:  # what comes at the end matters more
            traceback.print_exc()
    end_all(folder)
    # The launcher's to remove, unless it was aborted.
    shutil.rmtree(folder, ignore_errors=True)


def _is_over(launcher: int) -> bool:
    """Whether the launcher has ended, or wants this to; takes a moment."""
    told, _, _ = select.select([sys.stdin], [], [], _LOOK_EVERY_S)
    return bool(told) or os.getppid() != launcher


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
