"""All the routes about voices."""

from fastapi import FastAPI

from serve_app.http.catalog import Catalog
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.endpoint import SpeechEndpoint
from serve_app.http.voices import chatterbox, consents, one_shot, routes
from serve_app.http.voices.desk import Desk
from serve_app.http.voices.parts import Voices
from serve_app.resumption import Speak


def add_routes(
    app: FastAPI,
    voices: Voices,
    catalog: Catalog,
    speech: Speech,
    speak: Speak,
    answers: SpeechEndpoint,
) -> None:
    """`speak` makes the recordings of designed voices."""
    desk = Desk(voices, catalog, speech, speak)
    routes.add_routes(app, desk, catalog)
    consents.add_routes(app, desk)
    chatterbox.add_routes(app, desk)
    one_shot.add_routes(app, speech, answers, voices.config.max_upload_bytes)
