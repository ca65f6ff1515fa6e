"""This package's messages in the log of their replica.

Serve gives handlers to its own logger alone, so that what others say below WARNING is lost, and
with it the line of each request. In throughput mode it also keeps a thousand lines back, which
nobody sees while they are news, or when the process is killed.
"""

import logging
from typing import Final

from ray.serve._private.constants import SERVE_LOGGER_NAME

_OURS: Final = "serve_app"


class _ToServe(logging.Handler):
    """Hands on to the handlers that Serve's logger has at the time, and keeps nothing back."""

    def emit(self, record: logging.LogRecord) -> None:
        for handler in logging.getLogger(SERVE_LOGGER_NAME).handlers:
            try:
                handler.handle(record)
                handler.flush()
            except OSError:
                handler.handleError(record)


def join() -> None:
    """Have them written there, at Serve's level; to be called by a replica's constructor.

    A line that cannot be written is lost. By default Python would say so on stderr, which is
    written to the same log here, and again, until the stack is full and a request breaks.
    """
    logging.raiseExceptions = False
    ours = logging.getLogger(_OURS)
    if not any(isinstance(handler, _ToServe) for handler in ours.handlers):
        ours.addHandler(_ToServe())
    ours.propagate = False
    ours.setLevel(logging.getLogger(SERVE_LOGGER_NAME).getEffectiveLevel())
