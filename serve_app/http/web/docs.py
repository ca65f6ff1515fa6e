"""`/docs` and `/redoc`: Swagger UI and ReDoc from files of an installed package, so that they work
without a network. Addresses are relative: the pages may stand behind any prefix.
"""

from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

_FILES: Final = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "redoc.standalone.js": "text/javascript; charset=utf-8",
}
# Both pages have scripts and styles of their own in them, and ReDoc a worker and a picture that it
# would fetch from its makers.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "media-src 'self' blob:",
        "worker-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ICON: Final = "web/icon.svg"


def add_routes(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def swagger_ui() -> Response:
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url=_ICON,
            swagger_ui_parameters={"validatorUrl": None},
        )
        return HTMLResponse(page.body, headers=_HEADERS)

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> Response:
        page = get_redoc_html(
            openapi_url="openapi.json",
            title=app.title,
            redoc_js_url="docs/redoc.standalone.js",
            redoc_favicon_url=_ICON,
            with_google_fonts=False,
        )
        return HTMLResponse(page.body, headers=_HEADERS)

    @app.get("/docs/{name}", include_in_schema=False)
    async def file_of_docs(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404)
        headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(_content(name), headers=headers, media_type=_FILES[name])


@cache
def _content(name: str) -> bytes:
    """Read when it is first asked for: a megabyte and more each, which most servers never send."""
    return files("fastapi_offline").joinpath("static", name).read_bytes()
