"""A replica made in this process makes this package's log its own: the next test gets it back."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    log = logging.getLogger("serve_app")
    level, propagate, handlers = log.level, log.propagate, log.handlers[:]
    yield
    log.setLevel(level)
    log.propagate = propagate
    for handler in set(log.handlers) - set(handlers):
        log.removeHandler(handler)
