"""Where the WebSockets for text in pieces are."""

from collections.abc import Callable

from fastapi import FastAPI, WebSocket

from serve_app import metrics
from serve_app.config import IngressConfig
from serve_app.http.draining.drain import Drain
from serve_app.http.live.connection import let_in
from serve_app.http.live.session import LiveSession
from serve_app.http.live.together import TogetherSession
from serve_app.http.live.writer import LiveWriter
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.writer import AudioWriter
from serve_app.resumption import Speak


def add_routes(
    app: FastAPI,
    speech: Speech,
    speak: Speak,
    audio: AudioWriter,
    config: IngressConfig,
    recorder: metrics.Recorder,
    look: Callable[[int], None],
    drain: Drain,
) -> None:
    writer = LiveWriter(speak, audio, config.read_ahead_s)

    @app.websocket("/v1/audio/speech/stream")
    @app.websocket("/audio/speech/stream")
    async def speak_text_in_pieces(socket: WebSocket) -> None:
        if await let_in(socket, look):
            await LiveSession(socket, speech, writer, config, recorder, drain).run()

    @app.websocket("/v1/audio/speech/websocket")
    @app.websocket("/audio/speech/websocket")
    async def speak_as_together_does(socket: WebSocket) -> None:
        if await let_in(socket, look):
            await TogetherSession(socket, speech, writer, config, recorder, drain).run()
