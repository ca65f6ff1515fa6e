"""What HAProxy and Serve answer by themselves, in the shape of all other errors: OpenAI's.

While no ingress is there, or none answers, nobody of ours could say so. The texts are those of
`http/errors.py`, which a launcher cannot import: it has no web framework.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

_RETRY_S: Final = 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """One status; `retry`: whether the same request may be served soon."""

    status: int
    message: str
    kind: str
    code: str
    retry: bool = False

    @property
    def body(self) -> str:
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":"))

    @property
    def headers(self) -> dict[str, str]:
        if not self.retry:
            return {}
        return {"Retry-After": str(_RETRY_S), "retry-after-ms": str(1000 * _RETRY_S)}


_AWAY: Final = "The speech service is not available at the moment. Please try again."
_REFUSALS: Final = (
    Refusal(400, "This is no valid HTTP request.", "invalid_request_error", "bad_request"),
    Refusal(408, "The request did not arrive in time.", "timeout_error", "request_timeout"),
    Refusal(429, "The server is at its limit.", "rate_limit_error", "server_overloaded", True),
    Refusal(500, "The server failed to generate the speech.", "server_error", "internal_error"),
    *(
        Refusal(status, _AWAY, "server_error", "service_unavailable", True)
        for status in (502, 503, 504)
    ),
)
# Of these HAProxy makes some by itself; the other ones come from Serve. HAProxy's 400 and 408, for
# what is no request, are plain whatever is configured.
_OF_HAPROXY: Final = (500, 502, 503, 504)


def write(folder: Path) -> None:
    """Write the files that the lines below name."""
    for refusal in _REFUSALS:
        body = refusal.body.encode("ascii")
        (folder / f"{refusal.status}.json").write_bytes(body)
        head = [
            f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in refusal.headers.items()),
        ]
        lines = "".join(f"{line}\r\n" for line in [*head, ""])
        (folder / f"{refusal.status}.http").write_bytes(lines.encode("ascii") + body)


def error_files(folder: Path) -> Iterator[str]:
    """For the defaults of HAProxy's configuration: what it answers itself."""
    for status in _OF_HAPROXY:
        yield f"errorfile {status} {folder}/{status}.http"


def rewritten(folder: Path) -> Iterator[str]:
    """For a backend: what a server has answered that is not the application. That one's errors are
    JSON.
    """
    for refusal in _REFUSALS:
        fields = "".join(f" hdr {name} {value}" for name, value in refusal.headers.items())
        yield (
            f"http-response return status {refusal.status} content-type application/json"
            f" file {folder}/{refusal.status}.json{fields}"
            f" if {{ status {refusal.status} }}"
            " !{ res.hdr(content-type) -m beg application/json }"
        )
