"""Which web pages may use this server: its own, and those that the configuration names.

Browsers let any page open a WebSocket and send a form anywhere, and say only where the page is
from.
"""

from collections.abc import Container
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

_PORTS: Final = {"http": 80, "https": 443}


def is_foreign(scope: Scope, allowed: Container[str]) -> bool:
    """Whether a web page sent the request that is neither this server's nor of an origin that is
    `allowed`, where "*" means all.

    Programs tell of no page. An extension of a browser is no page either, and `null`, which any
    page can be within a frame, is foreign.
    """
    headers = Headers(scope=scope)
    # Written by the browser itself, and only to addresses of https or of its own machine. It holds
    # whatever a proxy makes of the Host.
    site = headers.get("sec-fetch-site")
    if site == "same-origin" or "*" in allowed:
        return False
    origin = headers.get("origin")
    if origin is None:
        return site in ("same-site", "cross-site")
    if origin in allowed:
        return False
    asked = headers.get("x-forwarded-host") or headers.get("host", "")
    try:
        page, own = urlsplit(origin), urlsplit(f"//{asked.partition(',')[0].strip()}")
        if page.scheme.endswith("-extension"):
            return False
        port = _PORTS.get(page.scheme)
        is_own = (page.hostname, page.port or port) == (own.hostname, own.port or port)
    except ValueError:  # it is no address
        return True
    return page.hostname is None or not is_own
