"""Who is decoded next: first audio, then whose listener runs dry first, in company if time allows.

Plain bookkeeping without a device or a thread; the runner holds its lock around every call.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from serve_app.models.speech_decoder.jobs import DecodeJob

# So many jobs are company enough, and a listener with less to play than this is not kept waiting.
_COMPANY: Final = 32
# Frames that a stream is primed with at a time: others wait meanwhile.
PRIMED_FRAMES: Final = 64
# A step of the largest batch takes some 30 ms beside a busy talker, and two may be before it.
_MARGIN_S: Final = 0.08


@dataclass(slots=True, eq=False)
class DecoderStream:
    """A slot in use: its jobs, in order, and how far its listener can play."""

    slot: int
    jobs: deque[DecodeJob] = field(default_factory=deque)
    fresh: bool = True
    first_audio_s: float | None = None
    delivered_samples: int = 0


class DecoderQueue:
    """The streams in use and their jobs, and who waits.

    Args:
        sizes: lengths of pieces, ascending, in frames; 1 is among them.
        pad_final: whether a final piece may be shorter than the size that it is decoded with.
        patience_s: how long a job may wait for company.
        sample_rate_hz: of the audio.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        pad_final: bool,
        patience_s: float,
        sample_rate_hz: int,
        clock: Callable[[], float],
    ) -> None:
        self.streams: dict[int, DecoderStream] = {}
        self._ready: dict[int, DecoderStream] = {}
        self._sizes = sizes
        self._pad_final = pad_final
        self._patience_s = patience_s
        self._sample_rate_hz = sample_rate_hz
        self._clock = clock

    @property
    def jobs(self) -> list[DecodeJob]:
        return [job for stream in self._ready.values() for job in stream.jobs]

    def open(self, slot: int) -> None:
        self.streams[slot] = DecoderStream(slot)

    def close(self, slot: int) -> list[DecodeJob]:
        """Forget a stream; what it still has waiting."""
        stream = self.streams.pop(slot)
        self._ready.pop(slot, None)
        jobs = list(stream.jobs)
        # A step that is under way still holds the stream.
        stream.jobs.clear()
        return jobs

    def add(self, stream: DecoderStream, job: DecodeJob) -> bool:
        """Append a job; whether that can end a wait as long as `seconds_to_wait` said before."""
        stream.jobs.append(job)
        self._ready[stream.slot] = stream
        return len(self._ready) in (1, _COMPANY) or self._is_urgent(stream, self._clock())

    def finish(self, stream: DecoderStream) -> None:
        """Take a stream's first job away."""
        stream.jobs.popleft()
        if not stream.jobs:
            self._ready.pop(stream.slot, None)

    def clear(self) -> None:
        """Take all jobs away."""
        for stream in self._ready.values():
            stream.jobs.clear()
        self._ready.clear()

    def seconds_to_wait(self) -> float | None:
        """How long to wait for more jobs; 0: not at all, None: there is none."""
        ready = self._ready.values()
        if not ready:
            return None
        if not self._patience_s or len(ready) >= _COMPANY:
            return 0.0
        now = self._clock()
        if any(self._is_urgent(stream, now) for stream in ready):
            return 0.0
        oldest_s = min(stream.jobs[0].submitted_s for stream in ready)
        return max(0.0, oldest_s + self._patience_s - now)

    def due(self, most: Callable[[int], int]) -> tuple[list[tuple[DecoderStream, DecodeJob]], int]:
        """The streams of the next step and how many frames each decodes; at least one is ready.

        Args:
            most: streams that a step of pieces of so many frames can have.
        """
        ready = sorted(self._ready.values(), key=self._urgency)
        first = ready[0].jobs[0]
        if first.to_prime:
            return [(ready[0], first)], min(PRIMED_FRAMES, first.to_prime)
        size = self._next_size(first)
        same = [
            (stream, stream.jobs[0])
            for stream in ready
            if not stream.jobs[0].to_prime and self._next_size(stream.jobs[0]) == size
        ]
        return same[: most(size)], size

    def _is_urgent(self, stream: DecoderStream, now: float) -> bool:
        """Whether a stream has nothing to play, or not for long."""
        return stream.first_audio_s is None or self._urgency(stream)[1] < now + _MARGIN_S

    def _urgency(self, stream: DecoderStream) -> tuple[int, float]:
        """Order of service: first audio by age, then the stream whose listener runs dry first."""
        if stream.first_audio_s is None:
            # A stream being primed may have a listener who still plays what came from elsewhere:
            # it waits if it takes many steps.
            job = stream.jobs[0]
            return int(job.discard and job.primed is None), job.submitted_s
        return 1, stream.first_audio_s + stream.delivered_samples / self._sample_rate_hz

    def _next_size(self, job: DecodeJob) -> int:
        remaining = len(job.codes) - job.next_frame
        if job.final and self._pad_final:
            # One longer piece instead of several short ones; the surplus is thrown away.
            longer = [size for size in self._sizes if size >= remaining]
            if longer:
                return longer[0]
        return max(size for size in self._sizes if size <= remaining)
