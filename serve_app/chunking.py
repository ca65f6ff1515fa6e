"""Frames of one stream regrouped into items of growing size."""

from collections.abc import Sequence
from itertools import chain, repeat

import numpy as np

from serve_app.types import CodecFrames, FinishReason


class Chunker:
    """Holds the frames of one stream until an item is full.

    Small first items bring the first audio early, larger ones later make a decoder step worth its
    launch. Only the last item may be shorter than planned; it alone has a finish reason.

    Args:
        chunk_frames: frames of the first item, the second, ...; the last number repeats.
        first_frame: number of the first frame that will be added.
    """

    def __init__(self, chunk_frames: Sequence[int], first_frame: int = 0) -> None:
        self._sizes = chain(chunk_frames, repeat(chunk_frames[-1]))
        self._size = next(self._sizes)
        self._held: list[np.ndarray] = []
        self._first_frame = first_frame

    def add(
        self,
        codes: np.ndarray,
        finish_reason: FinishReason | None = None,
        samples: np.ndarray | None = None,
    ) -> CodecFrames | None:
        """Take the next frame and return an item if that completes one.

        Args:
            codes: int64 [1, Q], or [0, Q] for an end that has no frame of its own.
            finish_reason: set on the last call of a stream, which always returns an item.
            samples: the audio of this frame, if it is made already; such a frame has to be an item
                of its own.
        """
        if len(codes):
            self._held.append(codes)
        if len(self._held) < self._size and finish_reason is None:
            return None
        held = self._held
        joined = held[0] if len(held) == 1 else np.concatenate([codes[:0], *held])
        item = CodecFrames(joined, self._first_frame, finish_reason, samples)
        self._held = []
        self._first_frame += len(joined)
        self._size = next(self._sizes)
        return item
