"""What each replica says of its start: seconds of each part, from the logs of a server."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from load_tests.servers.server import Server, text_of
from serve_app.deployments.ray_serve.starts import STARTED

# Behind the level and the time that Serve's log has.
_LINE: Final = re.compile(
    r"(?:^\w+ ([\d-]+ [\d:,]+) .*)?" + re.escape(STARTED) + r" [\d.]+ s: (.*)"
)
_PART: Final = re.compile(r"([^,]+) (\d+\.\d+)(?:, |$)")
# Serve names the log of a replica by application, deployment and replica.
_FILE: Final = re.compile(r"replica_.+_([A-Za-z]+)_[a-z0-9]+\.log")


@dataclass(frozen=True, slots=True)
class ReplicaStart:
    """The constructor of a replica: what came before it, Ray's and Serve's, is not in `parts`.

    log: the name of its log, which no other replica has.
    said_at: when it said so, as its log has it: sorts as text; "" where the log does not tell.
    """

    deployment: str
    log: str
    parts: dict[str, float]
    said_at: str = ""

    def text(self) -> str:
        each = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        return f"{self.deployment}: {sum(self.parts.values()):.1f} s in its process ({each})"


def replica_starts(server: Server) -> list[ReplicaStart]:
    """Of every replica that has said it by now."""
    return [start for path in server.logs() for start in of_log(path.name, text_of(path))]


def of_log(name: str, text: str) -> Iterator[ReplicaStart]:
    """The starts that a log of this name and text tells of; of a replica, at most one."""
    found = _FILE.fullmatch(name)
    if found is None:
        return
    for line in text.splitlines():
        if said := _LINE.search(line):
            parts = {part[1]: float(part[2]) for part in _PART.finditer(said[2])}
            yield ReplicaStart(found[1], name, parts, said[1] or "")
