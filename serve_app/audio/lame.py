"""MP3 streams by LAME itself (lameenc): one call for a chunk, and Python's lock is free during it.

FFmpeg's encoder, which makes the files, is the same LAME, called from Python for every packet of
24 ms, in a build that takes four times as long.
"""

from importlib import import_module
from typing import Any, Final

import numpy as np

from serve_app.audio.compressed import MP3

_lameenc: Any = import_module("lameenc")  # it says nothing of its types

# LAME's algorithm, 0 (best) to 9; FFmpeg's option of another name is the same number.
_QUALITY: Final = int(MP3.options["compression_level"])


class LameEncoder:
    """A stream of int16 samples, without a tag in front: short probes would fail (LiveKit's reads
    32 bytes).

    The bit reservoir is on: what a frame borrows lies before it, so that it can be played when it
    is there.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        bit_rate = MP3.bit_rate(sample_rate_hz)
        assert bit_rate is not None
        encoder = _lameenc.Encoder()
        encoder.silence()
        encoder.set_channels(1)
        encoder.set_in_sample_rate(sample_rate_hz)
        encoder.set_out_sample_rate(sample_rate_hz)
        encoder.set_bit_rate(bit_rate // 1000)
        encoder.set_quality(_QUALITY)
        # Its tables, which take milliseconds, now and not when the first samples wait for them.
        encoder.encode(b"")
        self._lame = encoder

    def encode(self, samples: np.ndarray) -> bytes:
        """Take int16 [N]; the bytes that are ready."""
        if not len(samples):
            return b""
        return bytes(self._lame.encode(np.ascontiguousarray(samples, dtype=np.int16)))

    def finish(self) -> bytes:
        return bytes(self._lame.flush())
