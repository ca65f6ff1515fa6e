"""The layer that takes a slash off the end of a path, as people write addresses by hand.

Starlette would redirect, which curl does not follow by itself, and behind a proxy that ends TLS to
an address without it.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.http.access.credentials import is_open


class WithoutSlash:
    """Passes on `/v1/audio/speech/` as `/v1/audio/speech`; pages have relative links, and stay as
    they are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"].endswith("/"):
            bare = scope["path"].rstrip("/")
            if bare and not is_open(scope):
                raw = scope.get("raw_path")
                scope = {**scope, "path": bare, "raw_path": raw.rstrip(b"/") if raw else raw}
        await self._app(scope, receive, send)
