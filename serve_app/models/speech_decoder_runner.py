"""The thread that decodes whoever is due, in batches, through CUDA graphs where there is CUDA."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.decoder_jobs import Job, settle
from serve_app.models.decoder_queue import DecoderQueue, Stream
from serve_app.models.decoder_state import DecoderState
from serve_app.models.speech_decoder_model import SpeechDecoderModel

_LOGGER = logging.getLogger(__name__)

_INT16_SCALE: Final = 32767.0
# Activations of one step are kept below this; about four tensors of the widest stage live at once.
_MAX_STEP_BYTES: Final = 1 << 30
_LIVE_TENSORS: Final = 4
# Steps of so many frames (all streams together) are waited for by spinning: sleeping costs some
# 0.4 ms of their 1 to 2 ms, and they are the ones that make first audio.
_SPIN_FRAMES: Final = 16
# Graphs of up to so many streams are there from the start, larger ones follow.
_FIRST_ROWS: Final = 8


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products on CUDA use TensorFloat-32 or not, in the whole process."""
    cudnn: Any = torch.backends.cudnn
    flags = (torch.backends.cuda.matmul, cudnn.conv)
    before = [flag.fp32_precision for flag in flags]
    for flag in flags:
        flag.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value


@contextlib.contextmanager
def _benchmark(wanted: bool) -> Iterator[None]:
    """Let cuDNN choose convolution algorithms by trying them, in the whole process."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass(slots=True, eq=False)
class _Step:
    """Pieces on their way through the device together; `done` is None if they are through.

    frames: how many of each count; a final piece may be shorter than the others.
    samples: int16 [len(group), N], a host buffer that the step after the next one overwrites.
    """

    group: list[tuple[Stream, Job]]
    frames: list[int]
    samples: np.ndarray
    done: torch.cuda.Event | None
    finished: list[Job] = field(default_factory=list)


class SpeechDecoderRunner:
    """The model, the states of all streams, and the one thread that decodes.

    Each step takes the most urgent stream, fills the batch with streams that can decode as many
    frames, and does them in one call: a CUDA graph per (streams, frames) that gathers the states,
    decodes and scatters them back, or the same function eagerly. Only the thread touches the device
    after construction; every method may be called from any thread.

    Args:
        model: loaded, on its device.
        max_streams: slots of the arena.
        chunk_frames: chunk lengths to be fast at; longer or other jobs are cut into these and
            single frames.
        batch_sizes: numbers of streams to be fast at.
        benchmark: capture every graph in the constructor and let cuDNN try its algorithms, some of
            which occupy the device for seconds. Faster in bulk, slower to start.
        exact: forbid TensorFloat-32 (parity tests); otherwise float32 on CUDA uses it.
        graphs: capture CUDA graphs; default: exactly on CUDA.
        patience_s: how long a chunk whose listener has enough to play may wait for others to be
            decoded with.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: SpeechDecoderModel,
        *,
        max_streams: int,
        chunk_frames: Sequence[int],
        batch_sizes: Sequence[int],
        benchmark: bool = False,
        exact: bool = False,
        graphs: bool | None = None,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self._benchmark = benchmark
        self.spec = model.spec
        self.max_streams = max_streams
        self._clock = clock
        self.device = model.tables.device
        self._cuda = self.device.type == "cuda"
        self._graphs_enabled = self._cuda if graphs is None else graphs
        self._allow_tf32 = not exact
        # One row more than slots: what padded rows of a batch, warm-up and capture read and write.
        self.trash_slot = max_streams
        self._arena = model.new_state(max_streams + 1)
        self._before_reset: torch.cuda.Event | None = None
        self._sizes = self._piece_sizes(chunk_frames)
        self._batches = {
            size: self._batch_sizes(size, batch_sizes, max_streams) for size in self._sizes
        }
        # High priority: a chunk is short and somebody waits for it, while the talker's kernels,
        # which run at the same time, are a frame ahead.
        self._stream = torch.cuda.Stream(self.device, priority=-1) if self._cuda else None
        self._graphs: dict[int, BatchGraphs] = {}
        self._later: list[tuple[int, int]] = []
        self._host: dict[int, deque[tuple[Tensor, Tensor, Tensor]]] = {}
        self._build()

        self._wake = threading.Condition()
        self._free = deque(range(max_streams))
        self._queue = DecoderQueue(
            self._sizes,
            pad_final=self._graphs_enabled,
            patience_s=patience_s,
            sample_rate_hz=self.spec.sample_rate_hz,
            clock=clock,
        )
        self._failure: BaseException | None = None
        self._closing = False
        self._steps = 0
        self._frames = 0
        self._thread = threading.Thread(target=self._work, name="speech-decoder", daemon=True)
        self._thread.start()
        self._capturing: threading.Thread | None = None

    def acquire(self) -> int:
        """Take a free slot for a new stream.

        Raises:
            Overloaded: there is none.
            StageFailed, StageUnavailable: as `check_health`.
        """
        with self._wake:
            self._check()
            if not self._free:
                raise Overloaded(f"all {self.max_streams} streams of the speech decoder are in use")
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

    def submit(
        self,
        slot: int,
        codes: np.ndarray,
        *,
        reset: bool = False,
        discard: bool = False,
        final: bool = False,
    ) -> "Future[np.ndarray]":
        """Decode frames of the stream in `slot`, after those submitted before.

        Args:
            slot: from `acquire`.
            codes: int64 [T, Q], T >= 1.
            reset: put the state at the start of a stream first (always done for a stream's first
                frames).
            discard: only advance the state; the result is empty.
            final: nothing follows, so that the state behind these frames does not matter.

        Returns:
            A future of int16 [T * samples_per_frame]. It fails with StageFailed when the device
            does.

        Raises:
            StageFailed: the codes have a wrong shape or are out of range, or the decoder is broken.
            StageUnavailable: the decoder is closed.
        """
        future: Future[np.ndarray] = Future()
        self._enqueue(slot, Job(self._checked(codes), reset, discard, final, future))
        return future

    def submit_from_loop(
        self,
        slot: int,
        codes: np.ndarray,
        *,
        reset: bool = False,
        discard: bool = False,
        final: bool = False,
    ) -> "asyncio.Future[np.ndarray]":
        """Like `submit`, for the event loop that runs, which also has to release the slot.

        Cheaper than wrapping what `submit` returns: all streams that a step was for learn of it in
        one call of their loop.
        """
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._enqueue(slot, Job(self._checked(codes), reset, discard, final, future))
        return future

    def decode_first(self, slots: Tensor, codes: Tensor) -> Tensor:
        """Put the streams in `slots` [B] behind their first frame; capturable.

        Args:
            slots: int64 [B].
            codes: int64 [B, Q]. A control id among them gives a wrong sample, not a wrong address.

        Returns:
            int16 [B, samples_per_frame].
        """
        rows = self.model.new_state(len(slots))
        codes = codes.clamp(max=self.spec.codebook_size - 1)
        return self._decode_rows(slots, codes[:, :, None], rows)

    def follow(self, event: torch.cuda.Event) -> None:
        """Let streams that start over wait for `event`: their slot may be written until then."""
        self._before_reset = event

    def adopt(self, slot: int) -> None:
        """Take over a stream whose first frame was decoded by `decode_first` and delivered."""
        with self._wake:
            stream = self._queue.streams[slot]
            stream.fresh = False
            stream.first_audio_s = self._clock()
            stream.delivered_samples = self.spec.samples_per_frame
            self._frames += 1

    def capture_rest(self) -> None:
        """Begin to capture the large graphs, on a thread; once nothing else is being loaded.

        A capture is spoilt by what loading does elsewhere in the process, such as waiting for the
        whole device.
        """
        self._capturing = threading.Thread(
            target=self._capture_later, name="speech-decoder-capture", daemon=True
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
                "max_streams": self.max_streams,
                "waiting": len(self._queue.jobs),
                "steps": self._steps,
                "frames": self._frames,
            }

    def check_health(self) -> None:
        """Raise StageFailed after a failure of the device, StageUnavailable after `close()`."""
        with self._wake:
            self._check()

    def close(self) -> None:
        """Stop after the step in progress, join the thread and free the graphs; idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self.wait_until_captured()
        self._abandon(StageUnavailable("the speech decoder is shutting down"))
        for graphs in self._graphs.values():
            graphs.close()

    def _enqueue(self, slot: int, job: Job) -> None:
        with self._wake:
            self._check()
            stream = self._queue.streams[slot]
            job.reset |= stream.fresh
            job.submitted_s = self._clock()
            stream.fresh = False
            if self._queue.add(stream, job):
                self._wake.notify()

    def _check(self) -> None:
        if self._failure is not None:
            raise StageFailed(f"the speech decoder failed: {self._failure!r}")
        if self._closing:
            raise StageUnavailable("the speech decoder is shutting down")
        if not self._thread.is_alive():
            raise StageFailed("the speech decoder's thread is gone")

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

    def _piece_sizes(self, chunk_frames: Sequence[int]) -> tuple[int, ...]:
        """Return the piece lengths: chunk lengths and 1 with graphs, else all to the longest."""
        if self._graphs_enabled:
            return tuple(sorted({1, *chunk_frames}))
        return tuple(range(1, max(chunk_frames) + 1))

    def _batch_sizes(
        self, num_frames: int, batch_sizes: Sequence[int], max_streams: int
    ) -> tuple[int, ...]:
        """Keep the batch sizes whose activations fit and that so many streams can need."""
        spec = self.spec
        itemsize = self.model.tables.new_empty((), dtype=self.model.dtype).element_size()
        width = spec.decoder_dim >> len(spec.upsample_rates)
        frame_bytes = _LIVE_TENSORS * spec.samples_per_frame * width * itemsize
        limit = max(1, _MAX_STEP_BYTES // (frame_bytes * num_frames))
        needed = [size for size in sorted(batch_sizes) if size < max_streams]
        needed += [size for size in sorted(batch_sizes) if size >= max_streams][:1]
        return tuple(size for size in needed if size <= limit) or (1,)

    def _build(self) -> None:
        """Allocate host buffers; capture the small graphs, or decode a frame."""
        start = time.monotonic()
        pool = torch.cuda.graph_pool_handle() if self._graphs_enabled else None
        for size in self._sizes:
            self._graphs[size] = BatchGraphs(
                lambda rows, size=size: (
                    torch.full((rows,), self.trash_slot, dtype=torch.int64, device=self.device),
                    torch.zeros(
                        (rows, self.spec.num_code_groups, size),
                        dtype=torch.int64,
                        device=self.device,
                    ),
                ),
                self._decode_slots,
                self._batches[size],
                pool=pool,
                enabled=self._graphs_enabled,
            )
            rows = self._graphs[size].max_batch
            self._host[size] = deque(self._host_buffers(rows, size) for _ in range(2))
        with self._on_stream(), _benchmark(self._benchmark):
            if self._graphs_enabled:
                shapes = [
                    (rows * size, rows, size)
                    for size in self._sizes
                    for rows in self._batches[size]
                ]
                for _, rows, size in sorted(shapes):
                    if self._benchmark or rows <= max(_FIRST_ROWS, self._batches[size][0]):
                        self._graphs[size].capture(rows)
                    else:
                        self._later.append((rows, size))
            else:
                slots = torch.tensor([self.trash_slot], device=self.device)
                frame = torch.zeros(
                    1, self.spec.num_code_groups, 1, dtype=torch.int64, device=self.device
                )
                self._decode_slots(slots, frame)
            if self._stream is not None:
                self._stream.synchronize()
                # What the warm-up calls took lies outside the graphs' pool and is not needed again.
                torch.cuda.empty_cache()
        _LOGGER.info(
            "speech decoder ready on %s: %d streams, pieces of %s frames, %s, %.1f s",
            self.device,
            self.max_streams,
            self._sizes if self._graphs_enabled else f"1..{self._sizes[-1]}",
            "CUDA graphs" if self._graphs_enabled else "eager",
            time.monotonic() - start,
        )

    def _capture_later(self) -> None:
        """Capture the large graphs while the small ones serve; runs on a thread of its own.

        Their stream has no priority: in bulk, a talker's step comes first.
        """
        if not self._later:
            return
        start = time.monotonic()
        try:
            with torch.cuda.stream(torch.cuda.Stream(self.device)):
                for rows, size in self._later:
                    if self._closing:
                        return
                    self._graphs[size].capture(rows)
            _LOGGER.info(
                "speech decoder: %d more graphs after %.1f s",
                len(self._later),
                time.monotonic() - start,
            )
        except Exception:
            # What is captured goes on serving, only in smaller batches.
            _LOGGER.exception("speech decoder: the large graphs cannot be captured")

    def _host_buffers(self, rows: int, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Allocate what a step reads and writes on the host: slots, codes and samples."""
        spec, pinned = self.spec, self._cuda
        return (
            torch.empty(rows, dtype=torch.int64, pin_memory=pinned),
            torch.empty(
                rows, spec.num_code_groups, num_frames, dtype=torch.int64, pin_memory=pinned
            ),
            torch.empty(
                rows, num_frames * spec.samples_per_frame, dtype=torch.int16, pin_memory=pinned
            ),
        )

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        return (
            torch.cuda.stream(self._stream)
            if self._stream is not None
            else contextlib.nullcontext()
        )

    def _decode_slots(self, slots: Tensor, codes: Tensor) -> Tensor:
        """Advance the streams in `slots` [B] by codes [B, Q, T]; int16 [B, samples]."""
        return self._decode_rows(slots, codes, self._arena.gather(slots))

    def _decode_rows(self, slots: Tensor, codes: Tensor, rows: DecoderState) -> Tensor:
        with tf32(self._allow_tf32) if self._cuda else contextlib.nullcontext():
            samples = self.model.decode(codes, rows)
            self._arena.scatter(slots, rows)
            return (samples * _INT16_SCALE).round_().to(torch.int16)

    def _work(self) -> None:
        """Decode whoever is due until closed; a failure ends the thread and every stream.

        The results of a step are handed out while the device works on the next one, which is
        picked only once the step is over: whoever came meanwhile is considered.
        """
        running: _Step | None = None
        try:
            while True:
                if running is not None and running.done is not None:
                    running.done.synchronize()
                with self._wake:
                    if running is not None:
                        self._advance(running)
                    while running is None and not self._closing:
                        wait_s = self._queue.seconds_to_wait()
                        if wait_s == 0:
                            break
                        self._wake.wait(wait_s)
                    go = not self._closing and self._queue.seconds_to_wait() == 0
                    due = self._queue.due(lambda size: self._graphs[size].largest) if go else None
                    if due is None and running is None:
                        if self._closing:
                            return
                        continue
                if running is not None and not self._cuda:
                    # Here a launch does all the work, so nothing is gained by delivering later.
                    self._deliver(running)
                    running = None
                launched = self._launch(*due) if due is not None else None
                if running is not None:
                    self._deliver(running)
                running = launched
        except Exception as error:
            _LOGGER.exception("the speech decoder failed")
            with self._wake:
                self._failure = error
            self._abandon(
                StageFailed(f"the speech decoder failed: {error!r}"),
                running.finished if running is not None else [],
            )

    def _launch(self, group: "list[tuple[Stream, Job]]", size: int) -> "_Step":
        """Start decoding one piece of each job."""
        num_rows = len(group)
        # Two sets of host buffers: the step before may still be read.
        self._host[size].rotate()
        slots, codes, pcm = (buffer[:num_rows] for buffer in self._host[size][0])
        slot_view, code_view = slots.numpy(), codes.numpy()
        with self._on_stream():
            frames: list[int] = []
            for row, (stream, job) in enumerate(group):
                if job.reset and job.next_frame == 0:
                    if self._before_reset is not None:
                        torch.cuda.current_stream().wait_event(self._before_reset)
                    self._arena.reset(stream.slot)
                slot_view[row] = stream.slot
                piece = job.codes[job.next_frame : job.next_frame + size].T
                frames.append(piece.shape[1])
                code_view[row, :, : frames[row]] = piece
                code_view[row, :, frames[row] :] = 0
            pcm.copy_(self._graphs[size](slots, codes), non_blocking=True)
            done = None
            if self._cuda:
                done = torch.cuda.Event(blocking=num_rows * size > _SPIN_FRAMES)
                done.record()
        return _Step(group, frames, pcm.numpy(), done)

    def _advance(self, step: "_Step") -> None:
        """Note that a step is over; the lock is held."""
        now = self._clock()
        self._steps += 1
        self._frames += sum(step.frames)
        for (stream, job), num_frames in zip(step.group, step.frames, strict=True):
            job.next_frame += num_frames
            if job.next_frame < len(job.codes) or not stream.jobs:
                continue
            self._queue.finish(stream)
            step.finished.append(job)
            if not job.discard:
                stream.first_audio_s = now if stream.first_audio_s is None else stream.first_audio_s
                stream.delivered_samples += len(job.codes) * self.spec.samples_per_frame

    def _deliver(self, step: "_Step") -> None:
        """Hand the samples of a step to their jobs and finish the jobs that are complete."""
        for (_, job), num_frames, row in zip(step.group, step.frames, step.samples, strict=True):
            if not job.discard:
                job.samples.append(row[: num_frames * self.spec.samples_per_frame].copy())
        settle([(job, _joined(job.samples)) for job in step.finished])
        step.finished.clear()

    def _abandon(self, error: Exception, also: Sequence[Job] = ()) -> None:
        """Fail every waiting job, and those named."""
        with self._wake:
            jobs = [*also, *self._queue.jobs]
            self._queue.clear()
        settle([(job, error) for job in jobs])


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int16)
