"""Waits for what somebody else brings about, and gives up in time."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

Found = TypeVar("Found")

# Many times what anything takes that is waited for by default, on a busy machine as well.
PATIENCE_S: Final = 20.0


def wait_until(
    condition: Callable[[], Found],
    within_s: float = PATIENCE_S,
    every_s: float = 0.02,
    told: object = "",
) -> Found:
    """What `condition` returns as soon as that is true.

    Raises:
        AssertionError: not within `within_s`; it says what is `told`, as that is then.
    """
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, told
        time.sleep(every_s)
    return found


async def until(
    condition: Callable[[], Found], within_s: float = PATIENCE_S, every_s: float = 0.01
) -> Found:
    """As `wait_until`, of what happens on the same event loop.

    Raises:
        TimeoutError: not within `within_s`.
    """
    async with asyncio.timeout(within_s):
        while not (found := condition()):
            await asyncio.sleep(every_s)
    return found
