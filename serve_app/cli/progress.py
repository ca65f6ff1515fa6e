"""What was measured of the speech, told on standard error."""

import sys
import time
from collections.abc import Callable
from typing import Final

_EVERY_S: Final = 0.1


class Progress:
    """First audio, length and real-time factor, of all requests together.

    The real-time factor is the time that the server was waited for, divided by the length: what
    plays or stores the audio does not count.
    """

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._clock = clock
        self._asked_s = 0.0
        self._shown_s = 0.0
        self.waited_s = 0.0
        self.first_audio_s: float | None = None
        self.audio_s = 0.0

    def asking(self) -> None:
        """The server is waited for from now on, until `arrived`."""
        self._asked_s = self._clock()

    def arrived(self, audio_s: float) -> None:
        """A piece of so many seconds came; 0 where that cannot be known yet."""
        now = self._clock()
        self.waited_s += now - self._asked_s
        if self.first_audio_s is None:
            self.first_audio_s = self.waited_s
        self.audio_s += audio_s
        if self._live and now - self._shown_s >= _EVERY_S:
            self._shown_s = now
            print(f"\r\x1b[K{self}", end="", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        parts = []
        if self.audio_s:
            parts.append(f"{self.audio_s:.1f} s of audio")
        if self.first_audio_s is not None:
            parts.append(f"first audio after {1000 * self.first_audio_s:.0f} ms")
        if self.audio_s:
            parts.append(f"real-time factor {self.waited_s / self.audio_s:.3f}")
        return ", ".join(parts)

    def end(self, note: str | None = None) -> None:
        """The last line; where nothing came there is none."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr)
        if not self._quiet and self.first_audio_s is not None:
            print(f"{self}: {note}" if note else self, file=sys.stderr)
