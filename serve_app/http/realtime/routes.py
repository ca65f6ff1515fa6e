"""Where the Realtime API is."""

from collections.abc import Callable

from fastapi import FastAPI, WebSocket

from serve_app import metrics
from serve_app.config import IngressConfig
from serve_app.http.draining.drain import Drain
from serve_app.http.live.connection import let_in
from serve_app.http.realtime.session import RealtimeSession
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.writer import AudioWriter


def add_routes(
    app: FastAPI,
    speech: Speech,
    writer: AudioWriter,
    config: IngressConfig,
    recorder: metrics.Recorder,
    look: Callable[[int], None],
    drain: Drain,
) -> None:
    @app.websocket("/v1/realtime")
    async def speak_in_realtime(socket: WebSocket) -> None:
        if await let_in(socket, look):
            await RealtimeSession(socket, speech, writer, config, recorder, drain).run()
