"""Steps of the speech decoder on its device, in CUDA graphs where there is CUDA."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import allow_tf32
from serve_app.models.memory.decoder_steps import step_rows
from serve_app.models.speech_decoder.algorithms import Trials, trying
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.network.state import DecoderState
from serve_app.models.start_times import start_times

logger = logging.getLogger(__name__)

_INT16_SCALE: Final = 32767.0
# Steps of so many frames (all streams together) are waited for by spinning: sleeping costs some
# 0.4 ms of their 1 to 2 ms, and they are the ones that make first audio.
_SPIN_FRAMES: Final = 16
# Graphs of up to so many streams are there from the start, larger ones follow.
_FIRST_ROWS: Final = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """The next frames of one stream: int64 [T, Q]; `reset` puts its state at the start first."""

    slot: int
    codes: np.ndarray
    reset: bool


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way.

    samples: int16 [number of pieces, N], complete after `done`: a host buffer that the step after
        the next one of as many frames overwrites.
    done: None where the launch has done all the work.
    """

    samples: np.ndarray
    done: torch.cuda.Event | None


class DecoderSteps:
    """The model, the states of all streams, and what advances them.

    A CUDA graph per (streams, frames) gathers the states, decodes and scatters them back, or the
    same function does so eagerly. `launch` belongs to one thread; `decode_first` and `follow` are
    for whoever decodes first frames beside it.

    Args:
        model: loaded, on its device.
        max_streams: slots of the arena.
        chunk_frames: chunk lengths to be fast at; what is longer or another is to be cut into these
            and single frames, see `sizes`.
        batch_sizes: numbers of streams to be fast at.
        trials: of cuDNN's algorithms. Faster in bulk, slower to start: as some of them occupy the
            device, every graph is captured here then, and none later.
        exact: forbid TensorFloat-32 (parity tests); otherwise float32 on CUDA uses it.
        graphs: capture CUDA graphs; default: exactly on CUDA.
    """

    def __init__(
        self,
        model: SpeechDecoderModel,
        *,
        max_streams: int,
        chunk_frames: Sequence[int],
        batch_sizes: Sequence[int],
        trials: Trials | None = None,
        exact: bool = False,
        graphs: bool | None = None,
    ) -> None:
        self.model = model
        self.spec = model.spec
        self.max_streams = max_streams
        self.device = model.tables.device
        self.is_cuda = self.device.type == "cuda"
        self.has_graphs = self.is_cuda if graphs is None else graphs
        # One row more than slots: what padded rows of a batch, warm-up and capture read and write.
        self.trash_slot = max_streams
        self._trials = trials or Trials()
        if self.is_cuda:
            allow_tf32(not exact)
        self._arena = model.new_state(max_streams + 1)
        self._before_reset: torch.cuda.Event | None = None
        self.sizes = self._piece_sizes(chunk_frames)
        itemsize = model.dtype.itemsize
        self._batches = {
            size: step_rows(self.spec, itemsize, size, batch_sizes, max_streams)
            for size in self.sizes
        }
        # High priority: a chunk is short and somebody waits for it, while the talker's kernels,
        # which run at the same time, are a frame ahead.
        self._stream = torch.cuda.Stream(self.device, priority=-1) if self.is_cuda else None
        self._graphs: dict[int, BatchGraphs] = {}
        self._later: list[tuple[int, int]] = []
        self._host: dict[int, deque[tuple[Tensor, Tensor, Tensor]]] = {}
        self._build()

    def most_rows(self, size: int) -> int:
        """The streams that a step of pieces of `size` frames can have by now.

        Without a GPU they take as long together as one by one, and whoever has just begun waits for
        all of them: there no step has more frames than the longest piece.
        """
        largest = self._graphs[size].largest
        return largest if self.is_cuda else min(largest, max(1, self.sizes[-1] // size))

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

    def launch(self, pieces: Sequence[Piece], size: int) -> Launched:
        """Start to advance streams by their pieces, each of at most `size` frames.

        A shorter one is padded; the state behind it is then of no use.
        """
        num_rows = len(pieces)
        # Two sets of host buffers: the step before may still be read.
        self._host[size].rotate()
        slots, codes, pcm = (buffer[:num_rows] for buffer in self._host[size][0])
        slot_view, code_view = slots.numpy(), codes.numpy()
        with self._on_stream():
            for row, piece in enumerate(pieces):
                self._start_over(piece)
                slot_view[row] = piece.slot
                length = len(piece.codes)
                code_view[row, :, :length] = piece.codes.T
                code_view[row, :, length:] = 0
            pcm.copy_(self._graphs[size](slots, codes), non_blocking=True)
            done = None
            if self.is_cuda:
                done = torch.cuda.Event(blocking=num_rows * size > _SPIN_FRAMES)
                done.record()
        return Launched(pcm.numpy(), done)

    @property
    def can_prime(self) -> bool:
        """Whether `prime` may be called: it is no graph, and where steps are graphs they are fast
        enough at frames that nobody hears.
        """
        return not self.has_graphs

    def prime(self, piece: Piece) -> Launched:
        """Advance one stream's transformer by a piece of any length, without samples."""
        with self._on_stream():
            self._start_over(piece)
            slots = torch.tensor([piece.slot], device=self.device)
            rows = self._arena.gather(slots)
            self.model.prime(torch.from_numpy(piece.codes.T[None]).to(self.device), rows)
            self._arena.scatter(slots, rows)
            done = None
            if self.is_cuda:
                done = torch.cuda.Event(blocking=True)
                done.record()
        return Launched(np.empty((1, 0), np.int16), done)

    def _start_over(self, piece: Piece) -> None:
        """Put the state at the beginning of a stream where a piece is the first of one."""
        if not piece.reset:
            return
        if self._before_reset is not None:
            torch.cuda.current_stream().wait_event(self._before_reset)
        self._arena.reset(piece.slot)

    def capture_rest(self, is_stopped: Callable[[], bool]) -> None:
        """Capture the large graphs while another thread launches with the small ones.

        Their stream has no priority: in bulk, a talker's step comes first.
        """
        if not self._later:
            return
        start = time.monotonic()
        try:
            with torch.cuda.stream(torch.cuda.Stream(self.device)):
                for rows, size in self._later:
                    if is_stopped():
                        return
                    self._graphs[size].capture(rows)
            logger.info(
                "speech decoder: %d more graphs after %.1f s",
                len(self._later),
                time.monotonic() - start,
            )
        except Exception:
            # What is captured goes on serving, only in smaller batches.
            logger.exception("speech decoder: the large graphs cannot be captured")

    def close(self) -> None:
        """Free the graphs; idempotent."""
        for graphs in self._graphs.values():
            graphs.close()

    def _piece_sizes(self, chunk_frames: Sequence[int]) -> tuple[int, ...]:
        """Return the piece lengths: chunk lengths and 1 with graphs, else all to the longest."""
        if self.has_graphs:
            return tuple(sorted({1, *chunk_frames}))
        return tuple(range(1, max(chunk_frames) + 1))

    def _build(self) -> None:
        """Allocate host buffers; capture the small graphs, or decode a frame."""
        start = time.monotonic()
        pool = torch.cuda.graph_pool_handle() if self.has_graphs else None
        for size in self.sizes:
            self._graphs[size] = BatchGraphs(
                lambda rows, size=size: self._scratch(rows, size),
                self._decode_slots,
                self._batches[size],
                pool=pool,
                enabled=self.has_graphs,
            )
            rows = self._graphs[size].max_batch
            self._host[size] = deque(self._host_buffers(rows, size) for _ in range(2))
        with self._on_stream():
            if self.has_graphs:
                shapes = [
                    (rows * size, rows, size) for size in self.sizes for rows in self._batches[size]
                ]
                for frames, rows, size in sorted(shapes):
                    if self._trials.algorithms or rows <= max(_FIRST_ROWS, self._batches[size][0]):
                        self._meet(rows, size, self._trials.include(frames))
                        self._graphs[size].capture(rows, alone=True, met=True)
                        start_times.lap("decoder graphs")
                    else:
                        self._later.append((rows, size))
                self._meet_large_steps()
            else:
                self._decode_slots(*self._scratch(1, 1))
            if self._stream is not None:
                self._stream.synchronize()
                # What the warm-up calls took lies outside the graphs' pool and is not needed again.
                torch.cuda.empty_cache()
        logger.info(
            "speech decoder ready on %s: %d streams, pieces of %s frames, %s, %.1f s",
            self.device,
            self.max_streams,
            self.sizes if self.has_graphs else f"1..{self.sizes[-1]}",
            "CUDA graphs" if self.has_graphs else "eager",
            time.monotonic() - start,
        )

    def _meet(self, rows: int, size: int, is_tried: bool) -> None:
        """Run a step for the first time, in which libraries choose and load what they take."""
        with trying(self._trials.algorithms) if is_tried else contextlib.nullcontext():
            self._decode_slots(*self._scratch(rows, size))
        start_times.lap("decoder trials" if is_tried else "decoder first calls")

    def _meet_large_steps(self) -> None:
        """Run the largest step of each size whose graph comes later.

        Large steps have kernels of their own, which whoever captures them should find compiled.
        """
        for size in {size for _, size in self._later}:
            self._decode_slots(*self._scratch(max(n for n, of in self._later if of == size), size))

    def _scratch(self, rows: int, size: int) -> tuple[Tensor, Tensor]:
        """Slots [B] and codes [B, Q, T] of a step that concerns no stream."""
        return (
            torch.full((rows,), self.trash_slot, dtype=torch.int64, device=self.device),
            torch.zeros(
                rows, self.spec.num_code_groups, size, dtype=torch.int64, device=self.device
            ),
        )

    def _host_buffers(self, rows: int, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Allocate what a step reads and writes on the host: slots, codes and samples."""
        spec, pinned = self.spec, self.is_cuda
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
        samples = self.model.decode(codes, rows)
        self._arena.scatter(slots, rows)
        return (samples * _INT16_SCALE).round_().to(torch.int16)
