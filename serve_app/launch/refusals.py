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
# Where most of a crowd knocks.
_SPEECH: Final = ("/v1/audio/speech", "/audio/speech")
# So long what one was told holds for others. A place is free every 8 ms where 120 streams end a
# second, and who waits inside takes it. For much longer, and several stand free until they are
# taken at once, each by a prefill that the others' first audio waits for.
FULL_MS: Final = 10
# For what of a body fits into HAProxy's buffer, 16 KiB; the ingress bounds the rest.
_BODY_S: Final = 30


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
    Refusal(404, "Unknown path", "invalid_request_error", "not_found"),
    Refusal(408, "The request did not arrive in time.", "timeout_error", "request_timeout"),
    Refusal(429, "The server is at its limit.", "rate_limit_error", "server_overloaded", True),
    Refusal(500, "The server failed to generate the speech.", "server_error", "internal_error"),
    *(
        Refusal(status, _AWAY, "server_error", "service_unavailable", True)
        for status in (502, 503, 504)
    ),
)
# Of these HAProxy makes some by itself; the other ones come from Serve. HAProxy's 400 and 408 for
# what is no request are texts in its program, whatever is configured (2.8: `http_err_msgs`, sent by
# `h1_send_error`); there is a 408 for a body as well.
_OF_HAPROXY: Final = (408, 500, 502, 503, 504)


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


def unrouted(folder: Path, has_routes: bool) -> str:
    """For the backend of paths that no application has; of all paths before Serve has told HAProxy
    of any, as when HAProxy has just been started again.
    """
    return _answer("http-request", _refusal(404 if has_routes else 503), folder)


def of_backend(folder: Path) -> Iterator[str]:
    """For a backend of HAProxy's configuration."""
    yield from _early(folder)
    yield from _rewritten(folder)


def _early(folder: Path) -> Iterator[str]:
    """Who is refused before an ingress hears of it.

    An ingress that has refused a request because nobody could be let in says so, and for a moment
    whoever comes gets the same answer from here: at a thousand a second the event loop that sends
    the audio would otherwise do little else. What was refused is told to the next ingress that is
    asked. Who comes from a page of another origin is not meant: the answer has no headers for that.

    The names of the headers are those of `http/access/fronted.py`.
    """
    refusal = _refusal(HTTPStatus.TOO_MANY_REQUESTS)
    speech = f"{{ method POST }} {{ path {' '.join(_SPEECH)} }}"
    full = "{ var(proc.full_until),sub(txn.now) gt 0 } !{ req.hdr(origin) -m found }"
    yield "stick-table type integer size 1 expire 1h store gpc0"
    yield "http-request set-var(txn.now) date(0,ms)"
    yield f"http-request track-sc0 int(1) if {speech}"
    yield f"http-request sc-inc-gpc0(0) if {speech} {full}"
    # Serve reads HAProxy's lines one by one, for metrics of its own.
    yield f"http-request set-log-level silent if {speech} {full}"
    yield _answer("http-request", refusal, folder, f"{speech} {full}")
    # HAProxy sends again what it has whole. An ingress that goes may end the connection between the
    # headers and the body, and the client would find its own connection closed.
    yield f"http-request wait-for-body time {_BODY_S}s if {speech}"
    yield "http-request del-header x-tts-refused"
    yield f"http-request set-header x-tts-refused %[sc0_clr_gpc0] if {speech}"
    told = "{ res.hdr(x-tts-full) -m found }"
    yield f"http-response set-var(proc.full_until) date({FULL_MS},ms) if {told}"
    yield "http-response del-header x-tts-full"
    # It does as it was told by itself, and would keep the client's connection.
    yield "http-response set-header connection close if { res.hdr(x-tts-close) -m found }"
    yield "http-response del-header x-tts-close"
    # These end by themselves when their client leaves; Serve need not watch it as well, which takes
    # two tasks and a queue for each.
    yield f"http-request set-header x-request-disconnect-disabled ?1 if {speech}"


def _rewritten(folder: Path) -> Iterator[str]:
    """What a server has answered that is not the application. That one's errors are
    JSON.
    """
    for refusal in _REFUSALS:
        plain = "!{ res.hdr(content-type) -m beg application/json }"
        condition = f"{{ status {refusal.status} }} {plain}"
        yield _answer("http-response", refusal, folder, condition)


def _refusal(status: int) -> Refusal:
    return next(found for found in _REFUSALS if found.status == status)


def _answer(rule: str, refusal: Refusal, folder: Path, condition: str = "") -> str:
    fields = "".join(f" hdr {name} {value}" for name, value in refusal.headers.items())
    return (
        f"{rule} return status {refusal.status} content-type application/json"
        f" file {folder}/{refusal.status}.json{fields}" + (f" if {condition}" if condition else "")
    )
