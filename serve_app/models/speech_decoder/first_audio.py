"""First frames decoded right behind the step that makes them, before the host has seen a code.

Between the codes of a first frame and its samples lie otherwise the way to the host, two threads
and the launch of a decoder step, which together take longer than the decoding itself.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.speech_decoder.steps import DecoderSteps

# Launches whose samples have not been fetched; with more of them, first frames take the usual way.
_NUM_BUFFERS: Final = 4


@dataclass(slots=True, eq=False)
class FirstAudio:
    """The audio of some first frames, perhaps still being made.

    Args:
        rows: the rows of the step that it belongs to, ascending.
        samples: int16 [len(rows), samples_per_frame], pinned; complete after `done`.
        codes: what the device still reads; kept alive.
        give_back: called once the samples are copied.
    """

    rows: Sequence[int]
    samples: Tensor
    done: torch.cuda.Event
    codes: Tensor
    give_back: Callable[[], None]

    def fetch(self) -> dict[int, np.ndarray]:
        """Wait for the samples; int16 [samples_per_frame] by row. To be called once."""
        self.done.synchronize()
        copies = self.samples.numpy().copy()
        self.give_back()
        return dict(zip(self.rows, copies, strict=True))


class FirstAudioDecoder:
    """Runs the speech decoder's network for streams that begin; CUDA only.

    `launch` belongs to the thread that runs the talker's steps. What it leaves in the decoder's
    arena is what the decoder would have left there.

    Args:
        steps: of the decoder that goes on with these streams.
        batch_sizes: numbers of streams that a graph is captured for.
    """

    def __init__(self, steps: DecoderSteps, batch_sizes: Sequence[int]) -> None:
        # Held while a launch finds out who still wants it; a stream that leaves takes it as well.
        self.lock = threading.Lock()
        self._steps = steps
        self._device = steps.device
        self._stream = torch.cuda.Stream(self._device, priority=-1)
        spec = steps.spec
        self._graphs = BatchGraphs(
            lambda rows: (
                torch.full((rows,), steps.trash_slot, dtype=torch.int64, device=self._device),
                torch.zeros(rows, spec.num_code_groups, dtype=torch.int64, device=self._device),
            ),
            steps.decode_first,
            [size for size in batch_sizes if size <= steps.max_streams] or [1],
        )
        self.max_rows = self._graphs.max_batch
        with torch.cuda.stream(self._stream):
            self._graphs.capture_all()
            self._stream.synchronize()
        self._buffers = deque(
            (
                torch.empty(self.max_rows, dtype=torch.int64, pin_memory=True),
                torch.empty(
                    self.max_rows, spec.samples_per_frame, dtype=torch.int16, pin_memory=True
                ),
            )
            for _ in range(_NUM_BUFFERS)
        )

    def launch(self, slots: Sequence[int], codes: Tensor, rows: Sequence[int]) -> FirstAudio | None:
        """Decode the first frame of the streams in `slots`, after what the current stream does.

        Does nothing and returns None while too many launches are not fetched.

        Args:
            slots: of the decoder, at most `max_rows`.
            codes: int64 [B, Q] on the device, the frames of a step.
            rows: which of them, one per slot.
        """
        if not self._buffers:
            return None
        count, buffers = len(slots), self._buffers.popleft()
        slot_buffer, samples = (buffer[:count] for buffer in buffers)
        slot_buffer.copy_(torch.tensor(slots))
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            chosen = torch.cat([codes[row : row + 1] for row in rows])
            samples.copy_(self._graphs(slot_buffer, chosen), non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        self._steps.follow(done)
        return FirstAudio(rows, samples, done, codes, partial(self._buffers.append, buffers))

    def close(self) -> None:
        self._graphs.close()
