"""From a thread to the event loops that wait for what it has made."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def post(
    items: Iterable[tuple[asyncio.AbstractEventLoop, T]], receive: Callable[[list[T]], None]
) -> None:
    """Have each loop call `receive` once, with what is for it, in order."""
    batches: defaultdict[asyncio.AbstractEventLoop, list[T]] = defaultdict(list)
    for loop, item in items:
        batches[loop].append(item)
    for loop, batch in batches.items():
        try:
            loop.call_soon_threadsafe(receive, batch)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("dropped %d items for a closed event loop", len(batch))
