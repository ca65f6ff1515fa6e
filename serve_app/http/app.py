"""The HTTP application: `build_api` around any `speak`, without Ray.

The layers around it (`http/access`, `http/observe`) are plain ASGI: Starlette's
`BaseHTTPMiddleware` would end a body that broke off as if it were complete.
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve_app import __version__, metrics
from serve_app.config import IngressConfig
from serve_app.errors import NotFound
from serve_app.http import catalog as lists
from serve_app.http import health
from serve_app.http.access.answers import refuse
from serve_app.http.access.credentials import LOOKED_AT
from serve_app.http.access.layers import add_layers
from serve_app.http.access.limits import SharedLedger
from serve_app.http.background import Background
from serve_app.http.batch import endpoint as batch
from serve_app.http.catalog import Catalog
from serve_app.http.dialects import vapi
from serve_app.http.document import ERRORS
from serve_app.http.draining.drain import Drain
from serve_app.http.errors import add_error_handlers, error_response
from serve_app.http.health import Status
from serve_app.http.jobs import routes as jobs
from serve_app.http.live import routes as live
from serve_app.http.observe import exposition
from serve_app.http.observe.exposition import Gather
from serve_app.http.observe.tracing import Tracer, make_tracer
from serve_app.http.realtime import routes as realtime
from serve_app.http.speech import endpoint
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.writer import AudioWriter
from serve_app.http.voices import wiring as voices
from serve_app.http.voices.parts import Voices
from serve_app.http.web import docs
from serve_app.http.web import routes as web
from serve_app.resumption import Speak
from serve_app.voices.making import EncoderOf


def build_api(
    speak: Speak,
    catalog: Catalog,
    config: IngressConfig,
    status: Callable[[], Awaitable[Status]],
    recorder: metrics.Recorder | None = None,
    gather: Gather | None = None,
    tracer: Tracer | None = None,
    look: Callable[[int], None] = lambda priority: None,
    encoder_of: EncoderOf = lambda _: None,
    ledger: SharedLedger | None = None,
    drain: Drain | None = None,
) -> FastAPI:
    """The application: `speak` makes the audio, `catalog` says what is served.

    `gather` knows the metrics of the whole cluster; without it there is no `/metrics`. `tracer` is
    the configuration's where it is not given. `look` raises Overloaded where a listener's request
    could not be let in, before anything of it is read. `encoder_of` gives what encodes recordings
    for a checkpoint, or None. `ledger` is where all ingresses count what keys use, if there may be
    several. `drain` is how the application is told to end.
    """
    drain = drain or Drain()
    status = drain.telling(status)
    recorder = recorder or metrics.NoRecorder()
    library = Voices.open(config, encoder_of)
    speech = Speech(catalog, config, library.voicing)
    tracer = tracer or make_tracer(config.observe.tracing)
    background = Background(
        tracer.units(drain.speaking(speak)), config.background_streams, recorder=recorder
    )
    long_texts = jobs.Jobs(speech, background, config, drain)
    app = FastAPI(
        title="Qwen3-TTS",
        version=__version__,
        lifespan=long_texts.lifespan,
        responses=ERRORS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_url="/openapi.json" if config.access.pages else None,
    )
    writer = AudioWriter(background.live, config.read_ahead_s, recorder, speech.clock)
    answers = endpoint.add_routes(app, speech, writer, config, recorder, look)
    vapi.add_routes(app, answers)
    batch.add_routes(app, speech, background, config, recorder)
    live.add_routes(app, speech, background.live, writer, config, recorder, look, drain)
    realtime.add_routes(app, speech, writer, config, recorder, look, drain)
    jobs.add_routes(app, long_texts)
    lists.add_routes(app, catalog)
    voices.add_routes(app, library, catalog, speech, background.live, answers)
    health.add_routes(app, catalog, status, has_pages=config.access.pages)
    if gather is not None and config.observe.metrics != "off":
        exposition.add_routes(app, gather, status, library.counter(catalog))
    if config.access.pages:
        web.add_routes(app)
        docs.add_routes(app)
    _add_other_methods(app)
    _refuse_other_sockets(app)
    add_error_handlers(app)
    add_layers(app, config, status, recorder, tracer, drain, ledger)
    return app


def _add_other_methods(app: FastAPI) -> None:
    """HEAD where monitors look, and for who comes to a WebSocket without one, what it is."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and route.path in LOOKED_AT:
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
        elif isinstance(route, APIWebSocketRoute):
            app.add_api_route(route.path, _explain, methods=["GET"], include_in_schema=False)


def _refuse_other_sockets(app: FastAPI) -> None:
    """For a WebSocket where there is none, 404 with where they are. Starlette closes it, and the
    client sees a 403, as if a key were wrong.
    """
    there = [route.path for route in app.routes if isinstance(route, APIWebSocketRoute)]
    otherwise = app.router.default

    async def none_here(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await otherwise(scope, receive, send)
            return
        message = f"There is no WebSocket at {scope['path']}; there are {', '.join(there)}."
        await refuse(error_response(NotFound(message, None, "not_found")), scope, receive, send)

    app.router.default = none_here


async def _explain() -> None:
    raise HTTPException(
        426,
        "This path is a WebSocket: connect to it with ws:// or wss://, and let proxies on the way"
        " pass the headers Upgrade and Connection.",
        {"Upgrade": "websocket"},
    )
