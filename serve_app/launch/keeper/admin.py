"""What an HAProxy says of itself at its socket."""

import csv
import socket
from pathlib import Path
from typing import Final

_ANSWER_S: Final = 1.0


def listens(path: Path) -> bool:
    """Whether there is one that will answer."""
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(_ANSWER_S)
            asked.connect(str(path))
    except TimeoutError:  # more ask than it answers
        return True
    except OSError:
        return False
    return True


def ask(path: Path, command: str) -> str:
    """The answer of the HAProxy that listens there.

    Raises:
        OSError: none does, or it says nothing.
    """
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(_ANSWER_S)
        asked.connect(str(path))
        asked.sendall(f"{command}\n".encode("ascii"))
        with asked.makefile(encoding="ascii", errors="replace", newline="") as answer:
            return answer.read()


def statistics(path: Path, which: str = "") -> list[dict[str, str]]:
    """What it counts of each frontend, backend and server; raises as `ask`.

    Args:
        path: of its socket.
        which: of them, as HAProxy's management guide says.
    """
    return list(csv.DictReader(ask(path, f"show stat {which}").splitlines()))
