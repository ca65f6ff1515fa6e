"""An iterator that runs ahead of who iterates it."""

import queue
import threading
from collections.abc import Iterator
from typing import Final, TypeVar

Item = TypeVar("Item")
# Pieces of audio, 80 ms to some seconds each.
_AHEAD: Final = 2048


def read_ahead(items: Iterator[Item], ahead: int = _AHEAD) -> Iterator[Item]:
    """The items, made in a thread of their own: loudspeakers take them at the speed of speech, and
    a server should neither wait for that nor be measured by it.

    What the iterator raises is raised here, behind its last item.
    """
    made: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(ahead)

    def run() -> None:
        try:
            for item in items:
                made.put((item,))
        except BaseException as error:
            made.put(error)
        else:
            made.put(None)

    # A daemon: who leaves early ends the program, and with it the connection.
    threading.Thread(target=run, daemon=True).start()
    while (item := made.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item[0]
