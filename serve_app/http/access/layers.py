"""Puts the layers around the application, all of them plain ASGI.

From the outside: the path as it is meant, the record of the request, what a proxy in front is told,
other origins, whether the server is to end, keys and limits, sizes.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from serve_app import metrics
from serve_app.config import Environment, IngressConfig
from serve_app.http.access.fronted import Fronted
from serve_app.http.access.gate import KeyGate
from serve_app.http.access.keyring import Keyring
from serve_app.http.access.limits import KeyLimits, SharedLedger
from serve_app.http.access.peers import Ingresses
from serve_app.http.access.sizes import Sizes
from serve_app.http.access.slashes import WithoutSlash
from serve_app.http.draining.drain import Drain
from serve_app.http.draining.layer import Draining
from serve_app.http.health import Status
from serve_app.http.observe import log
from serve_app.http.observe.layer import Observed
from serve_app.http.observe.tracing import Tracer
from serve_app.keys import key_file

# What a page may read of a response besides its body and type.
_EXPOSED: Final = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "openai-processing-ms",
    "server-timing",
    "content-disposition",
    "x-ai-generated",
    "x-warning",
    "x-finish-reason",
    "x-usage-input-tokens",
    "x-usage-output-tokens",
    "x-usage-total-tokens",
    "x-sample-rate",
    "x-channels",
    "x-audio-sample-rate",
    "x-audio-channels",
)


def add_layers(
    app: FastAPI,
    config: IngressConfig,
    status: Callable[[], Awaitable[Status]],
    recorder: metrics.Recorder,
    tracer: Tracer,
    drain: Drain,
    ledger: SharedLedger | None = None,
) -> None:
    """Guard and watch `app`; `status` knows how many ingresses share the limits of the keys, by
    `ledger`, or where there is none each by itself; from the beginning of `drain` on no new speech
    passes.

    Raises:
        KeyFileError: the keys cannot be read.
    """
    access = config.access
    app.add_middleware(Sizes, config=access)
    limits = KeyLimits(access, ledger, Ingresses(status).count)
    app.add_middleware(KeyGate, config=config, keyring=keyring_of(config), limits=limits)
    app.add_middleware(Draining, drain=drain)
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("*",),
            allow_credentials=False,
            expose_headers=_EXPOSED,
            max_age=3600,
        )
    if Environment.read().proxy_refuses:
        app.add_middleware(Fronted, recorder=recorder)
    log.choose(as_json=config.observe.log_format == "json")
    app.add_middleware(Observed, recorder=recorder, tracer=tracer)
    app.add_middleware(WithoutSlash)


def keyring_of(config: IngressConfig) -> Keyring:
    """The keys of the configuration and of the environment."""
    environment = Environment.read()
    stated = config.access.keys_file
    files = [Path(stated).expanduser()] if stated else []
    if environment.api_keys_file is not None and environment.api_keys_file not in files:
        files.append(environment.api_keys_file)
    return Keyring(files, key_file.of_environment(environment.api_keys))
