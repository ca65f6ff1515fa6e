"""Frames of many streams regrouped into items of growing size."""

from collections.abc import Sequence

import numpy as np

from serve_app.types import CodecFrames, FinishReason


class FramesHeld:
    """Holds the frames of each stream, in a lane of its own, until an item is full.

    Small first items bring the first audio early, larger ones later make a decoder step worth its
    launch. Only the last item may be shorter than planned; it alone has a finish reason.

    Belongs to one thread.

    Args:
        chunk_frames: frames of a stream's first item, the second, ...; the last number repeats.
        num_code_groups: Q.
        lanes: streams at first; there is room for more.
    """

    def __init__(self, chunk_frames: Sequence[int], num_code_groups: int, lanes: int = 64) -> None:
        self._sizes = np.array(chunk_frames, np.int64)
        self._codes = np.zeros((lanes, int(self._sizes.max()), num_code_groups), np.int64)
        self._free = list(reversed(range(lanes)))
        # By lane: frames that are held, frames of the item, its number, and its first frame's.
        self._held, self._size, self._item, self._first = np.zeros((4, lanes), np.int64)

    def open(self, first_frame: int) -> int:
        """A lane for a stream whose next frame is `first_frame`."""
        if not self._free:
            self._grow()
        lane = self._free.pop()
        self._held[lane] = self._item[lane] = 0
        self._size[lane] = self._sizes[0]
        self._first[lane] = first_frame
        return lane

    def close(self, lane: int) -> None:
        """Give a lane back."""
        self._free.append(lane)

    def add(self, lanes: np.ndarray, codes: np.ndarray) -> list[int]:
        """Take the next frame of some streams.

        Args:
            lanes: int64 [B], each once; none holds a whole item.
            codes: int64 [B, Q].

        Returns:
            Which of `lanes`, by their places, hold a whole item now, for `take`.
        """
        held = self._held[lanes]
        self._codes[lanes, held] = codes
        self._held[lanes] = held + 1
        return np.flatnonzero(held + 1 == self._size[lanes]).tolist()

    def take(self, lane: int, finish_reason: FinishReason | None = None) -> CodecFrames:
        """The item of what is held, its stream's last one where there is a reason."""
        held, first = int(self._held[lane]), int(self._first[lane])
        self._held[lane] = 0
        self._first[lane] = first + held
        item = self._item[lane] = min(self._item[lane] + 1, len(self._sizes) - 1)
        self._size[lane] = self._sizes[item]
        return CodecFrames(self._codes[lane, :held].copy(), first, finish_reason)

    def _grow(self) -> None:
        lanes = len(self._held)
        self._codes = np.concatenate([self._codes, np.zeros_like(self._codes)])
        self._held, self._size, self._item, self._first = (
            np.concatenate([column, np.zeros_like(column)])
            for column in (self._held, self._size, self._item, self._first)
        )
        self._free = list(reversed(range(lanes, 2 * lanes)))
