"""The playground at `/web/`: files of this package, read once and sent from memory.

The page works without a network, so its policy allows nothing but this server: no script, style or
picture of another, and none within the page. Everything in it is addressed relative to the page,
which may stand behind any prefix.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

STATIC: Final = Path(__file__).parent / "static"
# By name and not as this machine would guess: a browser runs no module of another type.
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked for again each time, and answered with 304: pages and server stay of one version.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    data: bytes
    media_type: str
    etag: str


def add_routes(app: FastAPI) -> None:
    assets = read_assets(STATIC)

    @app.get("/web", include_in_schema=False)
    async def to_playground() -> Response:
        return RedirectResponse("web/")

    @app.api_route("/web/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def playground(request: Request, path: str) -> Response:
        asset = assets.get(path or "index.html")
        if asset is None:
            raise HTTPException(404)
        headers = {**_HEADERS, "ETag": asset.etag}
        if asset.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.data, headers=headers, media_type=asset.media_type)


def read_assets(folder: Path) -> dict[str, Asset]:
    """Every file of a known type below `folder`, by its path in a URL."""
    found: dict[str, Asset] = {}
    for path in sorted(folder.rglob("*")):
        media_type = _TYPES.get(path.suffix)
        if media_type is not None:
            data = path.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            found[path.relative_to(folder).as_posix()] = Asset(data, media_type, etag)
    return found
