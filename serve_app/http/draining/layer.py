"""The layer that counts what is open, and refuses new speech once the server drains."""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import ServerDraining
from serve_app.http.access.answers import refuse
from serve_app.http.access.credentials import is_open, is_speech, path_of
from serve_app.http.draining.drain import Drain
from serve_app.http.errors import error_response


class Draining:
    """Looking at lists, jobs and metrics stays possible until the end."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or is_open(scope) or _follows(scope):
            await self._app(scope, receive, send)
            return
        if is_speech(scope):
            try:
                self._drain.check()
            except ServerDraining as error:
                await refuse(error_response(error), scope, receive, send)
                return
        with self._drain.counted():
            await self._app(scope, receive, send)


def _follows(scope: Scope) -> bool:
    """Whether it lasts for as long as a long text takes, which the next start goes on with."""
    is_live = path_of(scope).endswith("/sse") or b"follow=" in scope.get("query_string", b"")
    return scope["type"] == "http" and scope["method"] == "GET" and is_live
