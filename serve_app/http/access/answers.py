"""How a layer below the routes refuses: JSON for HTTP, the same before a WebSocket is accepted."""

from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_POLICY_VIOLATION: Final = 1008
_DENIAL: Final = "websocket.http.response"


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer instead of the application; the status of a WebSocket that a server cannot answer is
    its 403.
    """
    if scope["type"] == "http":
        await response(scope, receive, send)
        return
    message = await receive()
    if message["type"] != "websocket.connect":
        return
    if _DENIAL not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": f"{_DENIAL}.start", **start})
    await send({"type": f"{_DENIAL}.body", "body": bytes(response.body)})
