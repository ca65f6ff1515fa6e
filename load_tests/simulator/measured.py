"""What was measured on the device (docs/performance.md), as the simulator needs it."""

from dataclasses import dataclass
from typing import Final

import numpy as np

# 1.7b on an H200: streams and ms of the whole step, one frame of each of them.
_STREAMS: Final = (1, 8, 16, 32, 64, 128, 256)
_STEP_MS: Final = (3.06, 4.56, 4.85, 5.57, 6.16, 8.59, 12.26)
# Streams and the p95 of first audio in ms over HTTP, `fused`, open loop: one stream, 20, 60, 100
# and 200 requests/s, which are some 6, 20, 37 and 100 streams; and the 256 of a closed loop.
_FIRST_STREAMS: Final = (1, 6, 20, 37, 100, 256)
_FIRST_MS: Final = (12.3, 17.1, 21.6, 25.3, 44.3, 66.8)


@dataclass(frozen=True, slots=True)
class Service:
    """One replica on one GPU; times in seconds.

    start_s: from the decision to a replica that runs, caches filled (13.6 s, rounded up).
    node_s: besides, where a machine has to be had first.
    report_s: how old what the policy sees is.
    slower: times that a step takes of what was measured.
    """

    capacity: int = 64
    start_s: float = 15.0
    node_s: float = 0.0
    report_s: float = 2.0
    max_queued: int = 256
    max_wait_s: float = 0.08
    slower: float = 1.0

    def step_s(self, streams: float) -> float:
        """One frame of all of so many streams on one replica."""
        return self.slower * float(np.interp(streams, _STREAMS, _STEP_MS)) / 1000

    def first_audio_s(self, streams: float) -> float:
        return float(np.interp(streams, _FIRST_STREAMS, _FIRST_MS)) / 1000
