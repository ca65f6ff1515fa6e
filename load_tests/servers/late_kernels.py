"""Kernels that stages have met after they were ready, as the logs of a server tell.

`/metrics` has their number some seconds later, and not any more that of a process that has ended.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from load_tests.servers.server import Server, text_of
from serve_app.models import late_kernels

# What a replica says is in its log of Serve's, and again on its standard error; a process of the
# stages has that alone, and names its logger there.
_OF_REPLICA: Final = re.compile(r" -- (\S.*) " + re.escape(late_kernels.LATE))
_OF_WORKER: Final = re.compile(
    re.escape(late_kernels.logger.name) + r" -- (\S.*) " + re.escape(late_kernels.LATE)
)


def late_kernels_of(server: Server) -> list[str]:
    """A name for each; a kernel may come in several variants."""
    return [name for path in server.logs() for name in of_log(path.name, text_of(path))]


def of_log(name: str, text: str) -> Iterator[str]:
    """Those that a log of this name and text tells of."""
    if name.startswith("replica_"):
        yield from _OF_REPLICA.findall(text)
    elif name.startswith("worker-"):
        yield from _OF_WORKER.findall(text)


def late_text(names: Sequence[str]) -> str:
    """For a report."""
    if not names:
        return "no kernel was compiled after ready"
    each = (
        f"{name} {count} times" if count > 1 else name for name, count in Counter(names).items()
    )
    return f"**{len(names)} kernels were compiled after ready**: {', '.join(each)}"
