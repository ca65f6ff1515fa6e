"""Speed without a change of pitch, and another sample rate, while the samples come in."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import av
import numpy as np
from av.error import BlockingIOError as NothingYet
from av.error import EOFError as NothingMore
from av.filter import Graph

from serve_app.audio.frames import pcm_frame

MIN_SPEED: Final = 0.25
MAX_SPEED: Final = 4.0
# What one `atempo` does without leaving out whole pieces of the signal.
_SLOWEST: Final = 0.5
_FASTEST: Final = 2.0
# The filters are fed in blocks of this length: what `atempo` finds depends on how it is fed.
_BLOCK_S: Final = 0.02
# More than the windows of all filters together: silence behind the end pushes the end out.
_FLUSH_S: Final = 0.25


class PcmFilter:
    """int16 samples of one stream, `speed` times as fast and at another rate.

    Any split of the input gives the same output, whose length is the input's times
    `to_hz / from_hz / speed`, rounded: FFmpeg's filters would swallow part of the end.
    """

    def __init__(self, from_hz: int, to_hz: int, speed: float = 1.0) -> None:
        self._from_hz = from_hz
        self._ratio = Fraction(to_hz, from_hz) / Fraction(speed)
        self._taken = 0
        self._given = 0
        self._block_samples = round(_BLOCK_S * from_hz)
        self._rest = np.zeros(0, np.int16)
        self._flush_samples = round(_FLUSH_S * from_hz * max(1.0, speed))
        self._graph = Graph()
        nodes = [
            self._graph.add_abuffer(
                sample_rate=from_hz, format="s16", layout="mono", time_base=Fraction(1, from_hz)
            ),
            *(self._graph.add("atempo", f"{factor:.9g}") for factor in _factors(speed)),
            self._graph.add("aresample", str(to_hz)),
            self._graph.add(
                "aformat", f"sample_fmts=s16:channel_layouts=mono:sample_rates={to_hz}"
            ),
            self._graph.add("abuffersink"),
        ]
        self._graph.link_nodes(*nodes).configure()

    def length(self, num_samples: int) -> int:
        """How many samples `num_samples` of the input become."""
        return round(num_samples * self._ratio)

    def filter(self, samples: np.ndarray) -> np.ndarray:
        """Take int16 [N] and give what is ready of the output, which may be nothing."""
        samples = np.concatenate([self._rest, samples])
        cut = len(samples) - len(samples) % self._block_samples
        self._rest = samples[cut:]
        self._push(samples[:cut])
        return self._give(self._pull())

    def finish(self) -> np.ndarray:
        """The end of the output."""
        missing = self.length(self._taken + len(self._rest)) - self._given
        silence = np.zeros(self._flush_samples, np.int16)
        self._push(np.concatenate([self._rest, silence]))
        self._graph.push(None)
        end = self._pull()[: max(0, missing)]
        return self._give(np.pad(end, (0, max(0, missing) - len(end))))

    def _push(self, samples: np.ndarray) -> None:
        for start in range(0, len(samples), self._block_samples):
            block = samples[start : start + self._block_samples]
            self._graph.push(pcm_frame(block, self._from_hz, self._taken))
            self._taken += len(block)

    def _pull(self) -> np.ndarray:
        parts = list(self._frames())
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)

    def _frames(self) -> Iterator[np.ndarray]:
        while True:
            try:
                frame = self._graph.pull()
            except (NothingYet, NothingMore):
                return
            assert isinstance(frame, av.AudioFrame)
            yield frame.to_ndarray()[0]

    def _give(self, samples: np.ndarray) -> np.ndarray:
        self._given += len(samples)
        return samples


def _factors(speed: float) -> Iterator[float]:
    """The speeds of filters in a chain that together make `speed`; none for 1."""
    while speed > _FASTEST:
        yield _FASTEST
        speed /= _FASTEST
    while speed < _SLOWEST:
        yield _SLOWEST
        speed /= _SLOWEST
    if speed != 1:
        yield speed
