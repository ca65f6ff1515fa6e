"""Where a request carries its key, and which paths need none."""

from collections.abc import Iterator
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from serve_app.config import IngressConfig

# OpenAI's clients in a browser, where a WebSocket has no headers.
SUBPROTOCOL: Final = "openai-insecure-api-key."
# What clients send that have no key.
_NO_KEY: Final = ("", "undefined", "null", "none")
# Azure's clients, others, and Vapi's server with the secret that it has been given.
_HEADERS: Final = ("api-key", "x-api-key", "x-vapi-secret")

_OPEN: Final = frozenset(
    [
        "/",
        "/health",
        "/ready",
        "/readyz",
        "/livez",
        "/version",
        "/web",
        "/docs",
        "/redoc",
        "/openapi.json",
    ]
)
# Also without OpenAI's prefix, for clients whose address lacks it.
_LISTS: Final = frozenset(
    prefix + path
    for prefix in ("/v1", "")
    for path in ("/models", "/audio/models", "/audio/voices")
)
_METRICS: Final = "/metrics"
# What programs look at to see whether a server lives, some of them by HEAD.
LOOKED_AT: Final = _OPEN | _LISTS | {_METRICS}
# What makes speech or encodes a voice, and so counts for the limits of a key.
_SPEECH: Final = (
    *("/v1/audio/speech", "/audio/speech", "/v1/realtime", "/vapi/"),
    *("/v1/audio/voices", "/v1/audio/voice_consents", "/v1/voices", "/voices"),
)


def keys_of(scope: Scope) -> Iterator[str]:
    """Every key that the request carries, wherever; who carries none yields none."""
    headers = Headers(scope=scope)
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and value.strip().lower() not in _NO_KEY:
        yield value.strip()
    for name in _HEADERS:
        value = headers.get(name, "").strip()
        if value.lower() not in _NO_KEY:
            yield value
    for name in scope.get("subprotocols", ()):
        if name.startswith(SUBPROTOCOL):
            yield name.removeprefix(SUBPROTOCOL)


def path_of(scope: Scope) -> str:
    """The path within the application; never the Host header's, which a client may make up."""
    return scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def needs_key(scope: Scope, config: IngressConfig) -> bool:
    """Whether a request is for those with a key; what is not listed as open here, is."""
    path = path_of(scope)
    if scope["type"] == "websocket":
        return True
    reads = scope["method"] in ("GET", "HEAD")
    if path == _METRICS and config.observe.metrics != "key":
        return False
    if is_open(scope):
        return not reads
    if path in _LISTS or path.startswith(("/v1/models/", "/models/")):
        return not (reads and config.access.public_lists)
    return True


def is_open(scope: Scope) -> bool:
    """Whether the path is a sign of life, the playground or the documentation."""
    path = path_of(scope)
    return path in _OPEN or path.startswith(("/web/", "/docs/"))


def is_speech(scope: Scope) -> bool:
    """Whether a request makes speech: looking at jobs and lists costs nothing."""
    makes = scope["type"] == "websocket" or scope["method"] == "POST"
    return makes and path_of(scope).startswith(_SPEECH)
