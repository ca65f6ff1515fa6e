"""What a replica's start took, in Serve's log, and why there is none, in the terminal.

In throughput mode nothing that is logged comes to the terminal of `serve run`. What is printed
does: Ray brings it there from any node.
"""

import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Concatenate, Final, ParamSpec, TypeVar

from ray import serve

from serve_app.errors import CheckpointError

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")

# Of a traceback in a message, say, no more is of use there.
_LONGEST: Final = 500

# What the line begins with, by which `load_tests` finds it.
STARTED: Final = "started in"

logger = logging.getLogger(__name__)


def say(parts: Mapping[str, float]) -> None:
    """Log the seconds of each part, and their sum; after `replica.begin`."""
    each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
    logger.info("%s %.2f s: %s", STARTED, sum(parts.values()), each)


def saying_why(
    begin: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[Concatenate[S, P], Awaitable[T]]:
    """For constructors: what is raised is printed as well, as one line. Serve tries again three
    times, each after a new process has begun, and only then says that the deployment has failed.
    """

    @wraps(begin)
    async def told(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await begin(self, *args, **kwargs)
        except Exception as error:
            context = serve.get_replica_context()
            print_why(f"{context.deployment} of {context.app_name!r}", error)
            raise

    return told


def print_why(what: str, error: Exception) -> None:
    """Print that `what` does not start, as one line."""
    plain = isinstance(error, CheckpointError | ValueError)
    says = str(error) if plain else f"{type(error).__name__}: {error}"
    print_line(f"{what} does not start: {' '.join(says.split())[:_LONGEST]}")


def print_line(line: str) -> None:
    """Print it past Serve, which makes lines of its log of `sys.stderr`; its own `print` shows a
    tuple.
    """
    stream = sys.__stderr__ or sys.stderr
    stream.write(f"{line}\n")
    stream.flush()
