"""The layer that lets in: no pages of others, who has a key, and no more than the key may have."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import IngressConfig
from serve_app.errors import NotAllowed, NotAuthenticated, RateLimited
from serve_app.http.access.answers import refuse
from serve_app.http.access.credentials import SUBPROTOCOL, is_speech, keys_of, needs_key
from serve_app.http.access.keyring import Keyring
from serve_app.http.access.limits import KeyLimits
from serve_app.http.access.origins import is_foreign
from serve_app.http.errors import error_response
from serve_app.http.observe.record import current
from serve_app.keys.key_file import Key

_REALTIME: Final = "realtime"
_MISSING: Final = (
    "You did not provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'."
)
_WRONG: Final = "Incorrect API key provided."
_FOREIGN: Final = (
    "Web pages of this origin may not use this server, unless its setting"
    " ingress.access.cors_origins names it."
)


class KeyGate:
    """Asks for a key where one is needed, and counts what it is used for.

    A request that is let in carries no key any more where the application could come upon it. Its
    record has the key's name and priority.
    """

    def __init__(
        self, app: ASGIApp, config: IngressConfig, keyring: Keyring, limits: KeyLimits
    ) -> None:
        self._app = app
        self._config = config
        self._keyring = keyring
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if self._acts(scope) and is_foreign(scope, self._config.access.cors_origins):
            error = NotAllowed(_FOREIGN)
            await refuse(error_response(error), scope, receive, send)
            return
        key = self._key(scope)
        if key is None and not self._keyring.is_open and needs_key(scope, self._config):
            message = _WRONG if any(keys_of(scope)) else _MISSING
            await refuse(error_response(NotAuthenticated(message)), scope, receive, send)
            return
        scope, send = _without_key(scope, send)
        if key is None:
            await self._app(scope, receive, send)
            return
        record = current()
        record.key, record.priority = key.name, key.priority
        if not is_speech(scope):
            await self._app(scope, receive, send)
            return
        entry = await self._limits.enter(key)
        if entry.refusal is not None:
            error = RateLimited(entry.refusal.message, entry.refusal.retry_after_s)
            response = error_response(error)
            _add(response, entry.headers)
            await refuse(response, scope, receive, send)
            return
        try:
            await self._app(scope, receive, _with_headers(send, entry.headers))
        finally:
            self._limits.leave(key)

    def _key(self, scope: Scope) -> Key | None:
        if self._keyring.is_open:
            return None
        # All that it carries: a proxy may use one of the headers for itself.
        found = [self._keyring.find(key) for key in keys_of(scope)]
        return next((key for key in found if key is not None), None)

    def _acts(self, scope: Scope) -> bool:
        """Whether a page of another server could do something here that it need not hear of.

        With a key it would have to know one: there is no cookie that a browser adds by itself.
        """
        if scope["type"] == "websocket":
            return True
        return self._keyring.is_open and scope["method"] not in ("GET", "HEAD", "OPTIONS")


def _without_key(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """The request without the subprotocol that is a key.

    A browser gives up where none of those it offers is chosen, so one is, if the application
    chooses none.
    """
    offered = scope.get("subprotocols", ())
    kept = [name for name in offered if not name.startswith(SUBPROTOCOL)]
    if len(kept) == len(offered):
        return scope, send

    async def choose(message: Message) -> None:
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message = {**message, "subprotocol": _REALTIME if _REALTIME in kept else None}
        await send(message)

    return {**scope, "subprotocols": kept}, choose


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    if not headers:
        return send

    async def with_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            _add_to(MutableHeaders(raw=list(message.get("headers", ()))), message, headers)
        await send(message)

    return with_headers


def _add_to(found: MutableHeaders, message: Message, headers: Mapping[str, Any]) -> None:
    for name, value in headers.items():
        found[name] = value
    message["headers"] = found.raw


def _add(response: Response, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        response.headers[name] = value
