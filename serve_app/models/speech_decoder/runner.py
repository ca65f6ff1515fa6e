"""The thread that decodes whoever is due, in batches."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.models.process_end import OnDeath, end_process
from serve_app.models.speech_decoder.jobs import DecodeJob, joined, settle
from serve_app.models.speech_decoder.queue import DecoderQueue, DecoderStream
from serve_app.models.speech_decoder.steps import DecoderSteps, Launched, Piece
from serve_app.models.step_times import StepTimes
from serve_app.protocols import require
from serve_app.types import Health

# A step takes tens of milliseconds, a first one of its shape some seconds.
_STALL_S: Final = 30.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Step:
    """Pieces on their way through the device together.

    frames: how many of each count; a final piece may be shorter than the others.
    """

    group: list[tuple[DecoderStream, DecodeJob]]
    frames: list[int]
    launched: Launched
    finished: list[DecodeJob] = field(default_factory=list)


class SpeechDecoderRunner:
    """Who speaks, what waits, and the one thread that decodes.

    Each step takes the most urgent stream, fills the batch with streams that can decode as many
    frames, and does them in one call of `steps`. Only the thread touches the device after
    construction; every method may be called from any thread.

    Args:
        steps: owned from here on; `close()` closes it. Jobs are cut into its sizes.
        patience_s: how long a chunk whose listener has enough to play may wait for others to be
            decoded with.
        clock: monotonic seconds.
        on_death: called with the reason, on the thread when the device has failed and every stream
            has been told; and by whoever asks for the health of a step that never ends.
    """

    def __init__(
        self,
        steps: DecoderSteps,
        *,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_death: OnDeath = end_process,
    ) -> None:
        self.steps = steps
        self.spec = steps.spec
        self._clock = clock
        self._on_death = on_death
        # When the step that is under way was launched.
        self._launched_s: float | None = None
        self._advanced_s: float | None = None
        self._wake = threading.Condition()
        self._free = deque(range(steps.max_streams))
        self._queue = DecoderQueue(
            steps.sizes,
            pad_final=steps.has_graphs,
            patience_s=patience_s,
            sample_rate_hz=self.spec.sample_rate_hz,
            clock=clock,
        )
        self._failure: BaseException | None = None
        self._closing = False
        self._num_steps = 0
        self._step_times = StepTimes()
        self._num_frames = 0
        self._thread = threading.Thread(target=self._work, name="speech-decoder", daemon=True)
        self._thread.start()
        self._capturing: threading.Thread | None = None

    def look(self) -> None:
        """Whether a new stream would find a slot now; raises as `acquire` does if not."""
        with self._wake:
            require(self.health())
            if not self._free:
                raise Overloaded(
                    f"all {self.steps.max_streams} streams of the speech decoder are in use",
                    stage="speech_decoder",
                )

    def acquire(self) -> int:
        """Take a free slot for a new stream.

        Raises:
            Overloaded: there is none.
            StageFailed, StageUnavailable: as `health` says.
        """
        with self._wake:
            self.look()
            # First in, first out: a slot just released may still have a piece of its old stream on
            # the device.
            slot = self._free.popleft()
            self._queue.open(slot)
            return slot

    def release(self, slot: int) -> None:
        """Give the slot back; what its stream still has waiting is cancelled."""
        with self._wake:
            jobs = self._queue.close(slot)
            self._free.append(slot)
        for job in jobs:
            job.future.cancel()

    def enqueue(self, slot: int, job: DecodeJob) -> None:
        """Decode frames of the stream in `slot`, after those enqueued before.

        Its future fails with StageFailed when the device does.

        Raises:
            StageFailed: the codes have a wrong shape or are out of range, or the decoder is broken.
            StageUnavailable: the decoder is closed.
        """
        job.codes = self._checked(job.codes)
        now_s, launched_s = self._clock(), self._launched_s
        with self._wake:
            is_late = launched_s is not None and now_s - launched_s > _STALL_S
            if self._failure is not None or self._closing or is_late:
                require(self.health())
            stream = self._queue.streams[slot]
            job.reset = stream.fresh
            job.submitted_s = now_s
            stream.fresh = False
            if self._queue.add(stream, job):
                self._wake.notify()

    def adopt(self, slot: int) -> None:
        """Take over a stream whose first frame was decoded by `decode_first` and delivered."""
        with self._wake:
            stream = self._queue.streams[slot]
            stream.fresh = False
            stream.first_audio_s = self._clock()
            stream.delivered_samples = self.spec.samples_per_frame
            self._num_frames += 1

    def capture_rest(self) -> None:
        """Begin to capture the large graphs, on a thread; once nothing else is being loaded.

        A capture is spoilt by what loading does elsewhere in the process, such as waiting for the
        whole device.
        """
        self._capturing = threading.Thread(
            target=self.steps.capture_rest,
            args=(lambda: self._closing,),
            name="speech-decoder-capture",
            daemon=True,
        )
        self._capturing.start()

    def wait_until_captured(self) -> None:
        """Wait for the end of `capture_rest`."""
        if self._capturing is not None:
            self._capturing.join()

    def stats(self) -> dict[str, float]:
        """Return streams, max_streams, waiting jobs, and counters of steps and frames."""
        with self._wake:
            return {
                "streams": len(self._queue.streams),
                "max_streams": self.steps.max_streams,
                "waiting": len(self._queue.jobs),
                "steps": self._num_steps,
                "step_s": self._step_times.total_s,
                **self._step_times.stats(),
                "frames": self._num_frames,
            }

    def health(self) -> Health:
        """Failed: the device, or a step that takes half a minute, which is its death."""
        with self._wake:
            now_s, since_s, last_s = self._clock(), self._launched_s, self._advanced_s
            busy_s = 0.0 if since_s is None else now_s - since_s
            progress_s = None if last_s is None else now_s - last_s
            state, reason = "works", ""
            if self._failure is not None:
                state, reason = "failed", f"the speech decoder failed: {self._failure!r}"
            elif self._closing:
                state, reason = "unavailable", "the speech decoder is shutting down"
            elif busy_s > _STALL_S:
                state = "failed"
                reason = f"the speech decoder has not finished a step for {_STALL_S:g} s"
                self._on_death(reason)
            return Health(state, reason, busy_s, progress_s)

    def close(self) -> None:
        """Stop after the step in progress, join the thread and free the graphs; idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self.wait_until_captured()
        self._abandon(StageUnavailable("the speech decoder is shutting down"))
        self.steps.close()

    def _checked(self, codes: np.ndarray) -> np.ndarray:
        codes = np.ascontiguousarray(codes, dtype=np.int64)
        if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] != self.spec.num_code_groups:
            raise StageFailed(
                f"codes of shape {codes.shape}, expected [T >= 1, {self.spec.num_code_groups}]"
            )
        # Without a sign, a negative number is a huge one.
        if codes.view(np.uint64).max() >= self.spec.codebook_size:
            raise StageFailed(
                f"codes from {codes.min()} to {codes.max()}, codebooks end at"
                f" {self.spec.codebook_size - 1};"
                " control ids must be dropped before the speech decoder"
            )
        return codes

    def _work(self) -> None:
        """Decode whoever is due until closed; a failure ends the thread and every stream.

        The results of a step are handed out while the device works on the next one, which is
        picked only once the step is over: whoever came meanwhile is considered.
        """
        running: _Step | None = None
        try:
            while True:
                if running is not None and running.launched.done is not None:
                    running.launched.done.synchronize()
                with self._wake:
                    if running is not None:
                        self._advance(running)
                    while running is None and not self._closing:
                        wait_s = self._queue.seconds_to_wait()
                        if wait_s == 0:
                            break
                        self._wake.wait(wait_s)
                    go = not self._closing and self._queue.seconds_to_wait() == 0
                    due = self._queue.due(self.steps.most_rows) if go else None
                    if due is None and running is None:
                        if self._closing:
                            return
                        continue
                if running is not None and running.launched.done is None:
                    # Here a launch does all the work, so nothing is gained by delivering later.
                    self._deliver(running)
                    running = None
                launched = self._launch(*due) if due is not None else None
                if running is not None:
                    self._deliver(running)
                running = launched
        except Exception as error:
            logger.exception("the speech decoder failed")
            with self._wake:
                self._failure = error
            self._abandon(
                StageFailed(f"the speech decoder failed: {error!r}"),
                running.finished if running is not None else [],
            )
            self._on_death(f"the speech decoder failed: {error!r}")

    def _launch(self, group: list[tuple[DecoderStream, DecodeJob]], size: int) -> _Step:
        """Start decoding one piece of each job."""
        self._launched_s = self._clock()
        pieces = [
            Piece(
                stream.slot,
                job.codes[job.next_frame : job.next_frame + size],
                job.reset and job.next_frame == 0,
            )
            for stream, job in group
        ]
        frames = [len(piece.codes) for piece in pieces]
        if group[0][1].to_prime:
            (piece,) = pieces
            return _Step(group, frames, self.steps.prime(piece))
        return _Step(group, frames, self.steps.launch(pieces, size))

    def _advance(self, step: _Step) -> None:
        """Note that a step is over; the lock is held."""
        now = self._clock()
        if self._launched_s is not None:
            self._step_times.note(now - self._launched_s)
        self._launched_s, self._advanced_s = None, now
        self._num_steps += 1
        self._num_frames += sum(step.frames)
        for (stream, job), num_frames in zip(step.group, step.frames, strict=True):
            job.next_frame += num_frames
            if job.next_frame < len(job.codes) or not stream.jobs:
                continue
            self._queue.finish(stream)
            step.finished.append(job)
            if not job.discard:
                stream.first_audio_s = now if stream.first_audio_s is None else stream.first_audio_s
                stream.delivered_samples += len(job.codes) * self.spec.samples_per_frame

    def _deliver(self, step: _Step) -> None:
        """Hand the samples of a step to their jobs and finish the jobs that are complete."""
        for (_, job), num_frames, row in zip(
            step.group, step.frames, step.launched.samples, strict=True
        ):
            if not job.discard:
                job.samples.append(row[: num_frames * self.spec.samples_per_frame].copy())
        settle([(job, joined(job.samples)) for job in step.finished])
        step.finished.clear()

    def _abandon(self, error: Exception, also: Sequence[DecodeJob] = ()) -> None:
        """Fail every waiting job, and those named."""
        with self._wake:
            jobs = [*also, *self._queue.jobs]
            self._queue.clear()
        settle([(job, error) for job in jobs])
