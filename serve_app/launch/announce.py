"""Says in the terminal when the server is ready, and until then what it waits for; and to systemd,
or another service manager, by the protocol of sd_notify(3).
"""

import json
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

NOTIFY_SOCKET: Final = "NOTIFY_SOCKET"
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
_LOOK_EVERY_S: Final = 1.0
_ANSWER_S: Final = 10.0
_ANYWHERE: Final = ("0.0.0.0", "::", "")
# This machine's own port, whatever proxy the environment names.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))

logger = logging.getLogger(__name__)


class ServiceManager:
    """Who has started this process and wants to hear of it; nobody where `address` is None.

    Args:
        address: of a Unix datagram socket; one that begins with @ is in the abstract namespace.
    """

    def __init__(self, address: str | None) -> None:
        # What this process starts has nothing to say there.
        os.environ.pop(NOTIFY_SOCKET, None)
        self._address = f"\0{address[1:]}" if address and address[0] == "@" else address

    def tell(self, state: str) -> None:
        """Send an assignment, as in the manual; nobody waits for a manager that is away."""
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.sendto(state.encode(), self._address)
        except OSError as error:
            logger.warning("the service manager does not hear %r: %s", state, error)

    def status(self, text: str) -> None:
        """Have `systemctl status` show the first line of a text."""
        self.tell(f"STATUS={text.partition(chr(10))[0]}")


@dataclass(frozen=True, slots=True)
class Failure:
    """What Serve has given up; `is_final`: with it nothing will ever be served."""

    says: str
    is_final: bool = False


def say_when_ready(
    host: str,
    port: int,
    failure: Callable[[], Failure | None] = lambda: None,
    give_up: Callable[[], None] = lambda: None,
    ready: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
    look_every_s: float = _LOOK_EVERY_S,
) -> threading.Thread:
    """Look at `/ready` from a thread until it answers 200; the thread does not outlive a process.

    Each reason why it is not ready is said once: what `failure` knows, else what the server says.
    Where neither says anything, Ray tells of its own start. After a final failure `give_up` is
    called, and nobody looks any more; `ready` is called once it is.
    """
    reached = "127.0.0.1" if host in _ANYWHERE else host
    address = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"

    def watch() -> None:
        began_s, told = time.monotonic(), set[str]()
        while True:
            is_ready, reason = _look(address)
            if is_ready:
                break
            failed = _asked(failure)
            if failed is not None and failed.is_final:
                say(failed.says)
                give_up()
                return
            reason = reason if failed is None else failed.says
            if reason and reason not in told:
                say(f"not ready yet: {reason}")
                told.add(reason)
            time.sleep(look_every_s)
        ready()
        waited_s = time.monotonic() - began_s
        page = _told(address, "/", "playground")
        to_try = f", and to try it {address}{page}" if page else ""
        note = _told(address, "/health", "note")
        says = f"ready after {waited_s:.0f} s: {address}/v1{to_try}"
        say(f"{says}\n{note}" if note else says)

    thread = threading.Thread(target=watch, name="announce", daemon=True)
    thread.start()
    return thread


def _asked(failure: Callable[[], Failure | None]) -> Failure | None:
    try:
        return failure()
    except Exception as error:  # of any kind: it asks Serve, which may be on its way in or out
        logger.debug("nobody knows why the server is not ready: %s", error)
        return None


def _look(address: str) -> tuple[bool, str | None]:
    """Whether the server is ready, and its reason why not."""
    try:
        with _OPENER.open(f"{address}/ready", timeout=_ANSWER_S):
            return True, None
    except urllib.error.HTTPError as error:
        try:
            reason = json.loads(error.read(4096)).get("reason")
        except (OSError, ValueError, AttributeError):  # a proxy that knows no ingress yet
            return False, None
        return False, reason if isinstance(reason, str) else None
    except (OSError, ValueError):
        return False, None


def _told(address: str, path: str, name: str) -> str | None:
    """A text in the JSON that a path answers with."""
    try:
        with _OPENER.open(f"{address}{path}", timeout=_ANSWER_S) as answer:
            text = json.load(answer).get(name)
    except (OSError, ValueError, AttributeError):
        return None
    return text if isinstance(text, str) else None
