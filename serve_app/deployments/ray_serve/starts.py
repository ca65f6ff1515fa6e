"""What a replica's start took, in Serve's log."""

import logging
from collections.abc import Mapping
from typing import Final

# What the line begins with, by which `load_tests` finds it.
STARTED: Final = "started in"

logger = logging.getLogger(__name__)


def say(parts: Mapping[str, float]) -> None:
    """Log the seconds of each part, and their sum; after `replica.begin`."""
    each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
    logger.info("%s %.2f s: %s", STARTED, sum(parts.values()), each)
