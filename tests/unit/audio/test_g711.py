import io

import av
import numpy as np
import pytest

from serve_app.audio.g711 import a_law, mu_law

EVERY = np.arange(-32768, 32768).astype(np.int16)


@pytest.mark.parametrize(
    ("encode", "form", "zero", "loudest"),
    [(mu_law, "mulaw", 0xFF, (0x00, 0x80)), (a_law, "alaw", 0xD5, (0x2A, 0xAA))],
)
def test_every_sample_is_heard_by_ffmpeg_as_what_it_was(encode, form, zero, loudest):
    data = encode(EVERY)
    assert len(data) == len(EVERY)
    with av.open(io.BytesIO(data), format=form, options={"sample_rate": "8000"}) as file:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    # Sixteen steps in each octave, and never fewer than those of the quietest one.
    off = np.abs(heard.astype(int) - EVERY)
    loud = np.abs(EVERY.astype(int))
    assert (off <= np.maximum(loud / 32 + 8, 8))[loud < 32000].all()
    assert data[32768] == zero
    assert (data[0], data[-1]) == loudest
