"""Voices for tests of the library."""

import time

from serve_app.voices.names import new_voice_id
from serve_app.voices.values import StoredVoice


def voice(name, owner=None, **fields):
    return StoredVoice(
        **{
            "id": new_voice_id(),
            "created_at": int(time.time()),
            "owner": owner,
            "source": "audio_sample",
            "consent": None,
            "file_size": 4,
            "mime_type": "audio/wav",
            "digest": "0" * 64,
            "duration_s": 2.0,
            "name": name,
            **fields,
        }
    )
