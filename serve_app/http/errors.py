"""Every error as OpenAI's error object: one table, used by the routes and by the application."""

import json
import math
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app.errors import (
    Conflict,
    InvalidRequest,
    ModelStarting,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    Overloaded,
    RateLimited,
    ServerDraining,
    SpeechError,
    StageUnavailable,
    StorageAway,
    StorageFull,
)
from serve_app.http.observe.record import current
from serve_app.http.response import CLIENT_GONE, ClientGone

# A start takes some tens of seconds; who asks again this often comes soon after its end.
_STARTING_S: Final = 5.0
# Another server may be there at once; where this one comes again, it has to start.
_DRAINING_S: Final = 5.0


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII, which is valid whatever it quotes: half a surrogate pair has no UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


# Their messages are for clients.
_TOLD: Final = (
    *(InvalidRequest, NotAuthenticated, NotAllowed),
    *(Overloaded, ModelStarting, ServerDraining, StorageAway, StorageFull),
)
# Of a message: what it begins with, and what it ends with, such as the names that there are.
_MESSAGE_END_CHARS: Final = 1000
_HTTP_CODES: Final = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    426: "upgrade_required",
}


def error_response(error: Exception) -> AsciiJSONResponse:
    """The one table from exception to status and OpenAI's error object.

    The message of a failure inside is left out: it may name files, devices or addresses.
    """
    headers: dict[str, str] = {}
    param: str | None = None
    code: str | None
    match error:
        case NotFound():
            status, kind, code, param = 404, "invalid_request_error", error.code, error.param
        case Conflict():
            status, kind, code, param = 409, "conflict_error", error.code, error.param
            headers = {"x-should-retry": "false"}  # OpenAI's clients try a 409 again
        case InvalidRequest():
            status, kind, code, param = 400, "invalid_request_error", error.code, error.param
        case NotAuthenticated():
            status, kind, code = 401, "invalid_request_error", "invalid_api_key"
            headers = {"WWW-Authenticate": "Bearer"}
        case NotAllowed():
            status, kind, code = 403, "permission_error", "not_allowed"
        case RateLimited():
            status, kind, code = 429, "rate_limit_error", "rate_limit_exceeded"
            headers = _retry_headers(error.retry_after_s)
        case Overloaded():
            status, kind, code = 429, "rate_limit_error", "server_overloaded"
            headers = _retry_headers(error.retry_after_s)
        case StorageFull():
            status, kind, code = 507, "server_error", "storage_full"
            headers = {"x-should-retry": "false"}
        case ModelStarting():
            status, kind, code, param = 503, "server_error", "model_starting", "model"
            headers = _retry_headers(_STARTING_S)
        case StorageAway():
            status, kind, code = 503, "server_error", "storage_unavailable"
            headers = _retry_headers(1.0)
        case ServerDraining():
            status, kind, code = 503, "server_error", "server_draining"
            headers = {**_retry_headers(_DRAINING_S), "Connection": "close"}
        case StageUnavailable():
            status, kind, code = 503, "server_error", "service_unavailable"
            headers = _retry_headers(1.0)
        case SpeechError():
            status, kind, code = 500, "server_error", "generation_failed"
        case HTTPException():
            status = error.status_code
            kind = "invalid_request_error" if status < 500 else "server_error"
            if status == 408:
                kind = "timeout_error"
            code = _HTTP_CODES.get(status)
            headers = dict(error.headers or {})
        case _:
            status, kind, code = 500, "server_error", "internal_error"
    current().error = code or kind
    return AsciiJSONResponse(
        {
            "error": {
                "message": _shortened(_message(error, status)),
                "type": kind,
                "param": param,
                "code": code,
            }
        },
        status,
        headers,
    )


def add_error_handlers(app: FastAPI) -> None:
    """Answer what a route raises, and unknown paths and methods, with `error_response`."""
    for kind in (SpeechError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _on_error)
    for kind in (ClientDisconnect, ClientGone):
        app.add_exception_handler(kind, _on_leaving)


async def _on_leaving(request: Request, error: Exception) -> Response:
    """Nobody receives it; it is for log and metrics, where a client that left is no failure."""
    del request, error
    return Response(status_code=CLIENT_GONE)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        name = str(first["loc"][-1])
        error = InvalidRequest(f"Invalid value for '{name}': {first['msg']}.", name)
    elif isinstance(error, HTTPException) and error.status_code in (404, 405):
        what = "Unknown path" if error.status_code == 404 else "Method not allowed"
        detail = f"{what}: {request.method} {request.url.path}"
        error = HTTPException(error.status_code, detail, error.headers)
    return error_response(error)


def _message(error: Exception, status: int) -> str:
    if isinstance(error, HTTPException):
        return str(error.detail)
    if isinstance(error, _TOLD):
        return str(error)
    if status == 503:
        return "The speech service is not available at the moment. Please try again."
    return "The server failed to generate the speech."


def _shortened(message: str) -> str:
    """Without the middle of what a client sent that is too long to be read."""
    if len(message) <= 2 * _MESSAGE_END_CHARS:
        return message
    return f"{message[:_MESSAGE_END_CHARS]} ... {message[-_MESSAGE_END_CHARS:]}"


def _retry_headers(seconds: float) -> dict[str, str]:
    return {
        "Retry-After": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(max(1, round(seconds * 1000))),
    }
