"""The HTTP application: `build_api` around any `speak`, without Ray.

There is no middleware here: Starlette's `BaseHTTPMiddleware` would end a body that broke off as if
it were complete.
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI

from serve_app import __version__, metrics
from serve_app.config import IngressConfig
from serve_app.http import catalog as lists
from serve_app.http import health
from serve_app.http.background import Background
from serve_app.http.batch import endpoint as batch
from serve_app.http.catalog import Catalog
from serve_app.http.errors import add_error_handlers
from serve_app.http.health import Status
from serve_app.http.jobs import routes as jobs
from serve_app.http.live import routes as live
from serve_app.http.realtime import routes as realtime
from serve_app.http.speech import endpoint
from serve_app.http.speech.accept import Speech
from serve_app.http.web import routes as web
from serve_app.resumption import Speak


def build_api(
    speak: Speak,
    catalog: Catalog,
    config: IngressConfig,
    status: Callable[[], Awaitable[Status]],
    recorder: metrics.Recorder | None = None,
) -> FastAPI:
    """The application: `speak` makes the audio, `catalog` says what is served."""
    recorder = recorder or metrics.NoRecorder()
    speech = Speech(catalog, config)
    background = Background(speak, config.background_streams)
    long_texts = jobs.Jobs(speech, background, config)
    app = FastAPI(title="Qwen3-TTS", version=__version__, lifespan=long_texts.lifespan)
    endpoint.add_routes(app, speech, background.live, config, recorder)
    batch.add_routes(app, speech, background, config, recorder)
    live.add_routes(app, speech, background.live, config, recorder)
    realtime.add_routes(app, speech, background.live, config, recorder)
    jobs.add_routes(app, long_texts)
    lists.add_routes(app, catalog)
    health.add_routes(app, catalog, status)
    web.add_routes(app)
    add_error_handlers(app)
    return app
