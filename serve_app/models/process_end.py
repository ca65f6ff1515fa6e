"""The end of a process whose stage cannot work any more.

A stage that is broken and still answers would draw the requests to it: who fails at once has the
fewest of them. A process that ends says the same to everybody, to Serve, to its peers and to who
waits for an answer, and Serve starts another one.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import Final, NoReturn

# EX_SOFTWARE of sysexits.h.
EXIT_STATUS: Final = 70

# What a stage calls when it cannot work any more, with the reason: `end_process` in a process of
# its own; in one that is not the stage's alone, a test's or a benchmark's, something that returns.
OnDeath = Callable[[str], None]

logger = logging.getLogger(__name__)


def end_process(reason: str) -> NoReturn:
    """Log `reason`, with the exception that is being handled if there is one, and end at once.

    From any thread. Nothing is cleaned up, since whatever is stuck would be waited for.
    """
    logger.critical("%s: this process ends", reason, exc_info=sys.exc_info()[0] is not None)
    # Serve's log handlers may hold lines back.
    logging.shutdown()
    os._exit(EXIT_STATUS)
