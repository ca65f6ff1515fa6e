"""Where the Realtime API is."""

from fastapi import FastAPI, WebSocket

from serve_app import metrics
from serve_app.config import IngressConfig
from serve_app.http.realtime.session import RealtimeSession
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.writer import AudioWriter
from serve_app.resumption import Speak


def add_routes(
    app: FastAPI,
    speech: Speech,
    speak: Speak,
    config: IngressConfig,
    recorder: metrics.Recorder,
) -> None:
    writer = AudioWriter(speak, config.read_ahead_s, recorder, speech.clock)

    @app.websocket("/v1/realtime")
    async def speak_in_realtime(socket: WebSocket) -> None:
        await RealtimeSession(socket, speech, writer, config, recorder).run()
