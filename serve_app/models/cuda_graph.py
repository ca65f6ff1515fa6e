"""Captured CUDA graphs with static inputs.

`GraphRunner` owns one captured graph; `BatchGraphs` owns one per batch size, pads a batch up to the
next one, and is its own eager twin (`enabled=False`). Not thread-safe: all graphs of one memory
pool are replayed by one thread, since a replay may overwrite what another graph of the pool left
behind (outputs excepted). Another thread may capture further sizes meanwhile.
"""

import gc
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

# Warm-up calls before a capture: libraries load their kernels and allocate their workspaces in the
# first ones.
_NUM_WARMUP_CALLS: Final = 2

# The stream of a thread for warm-up calls, by its device: one each, as each has a workspace.
_BESIDE = threading.local()


@contextmanager
def without_collections() -> Iterator[None]:
    """Let Python collect no garbage by itself, in the whole process.

    Threads that overlap here leave collections as the first one has found them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class GraphRunner:
    """Capture `fn` on the static inputs once, then replay.

    `fn` runs a few times before and during the capture, on whatever the inputs hold then: they must
    point it at scratch state. The capture happens on the current stream, which must not be the
    default one.

    Args:
        alone: no graph that this thread has captured is replayed meanwhile: then the calls before
            the capture run on the current stream. A graph keeps the workspace that cuBLAS has for
            the stream and thread of its capture, and such a call writes into it, so that by default
            they run on a stream of their own, which costs the thread a second workspace.
        met: the caller has called `fn` once already, on the current stream and with such inputs.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        pool: Any | None = None,
        alone: bool = False,
        met: bool = False,
    ) -> None:
        self.inputs = inputs
        current = torch.cuda.current_stream()
        stream = current if alone else _beside(current)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARMUP_CALLS - met):
                fn(*inputs)
        stream.synchronize()
        self._graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
        # thread_local: other threads of a fused replica may use CUDA while this one captures.
        # Not by torch.cuda.graph, which first waits for the whole device and collects garbage: that
        # would stop whoever is served meanwhile.
        # And without collections meanwhile: a graph among the garbage, destroyed on the thread that
        # captures, would spoil the capture.
        with without_collections():
            self._graph.capture_begin(
                *(() if pool is None else (pool,)), capture_error_mode="thread_local"
            )
            try:
                self._output = fn(*inputs)
            finally:
                self._graph.capture_end()

    def __call__(self) -> Tensor:
        """Replay on the current stream; the result is static, valid until the next call."""
        if self._graph is None:
            raise RuntimeError("the graph is closed")
        self._graph.replay()
        return self._output

    def close(self) -> None:
        if self._graph is not None:
            self._graph.reset()
            self._graph = None


def _beside(current: torch.cuda.Stream) -> torch.cuda.Stream:
    """The stream of this thread for calls that are not to meet what is captured on `current`."""
    streams: dict[torch.device, torch.cuda.Stream] = _BESIDE.__dict__.setdefault("streams", {})
    # PyTorch hands out the same few streams again and again.
    while (found := streams.get(current.device)) is None or found == current:
        streams[current.device] = torch.cuda.Stream(current.device)
    return found


class BatchGraphs:
    """One graph of `fn` per batch size; a call is padded up to the next size.

    Args:
        make_inputs: static inputs for a batch size, each with leading dimension equal to it. What
            they hold at first is the padding: it is what `fn` sees in unused rows, and in all rows
            during warm-up and capture.
        fn: tensors -> tensor with the same leading dimension. Rows must not influence one another.
        batch_sizes: sizes to capture, in ascending order.
        pool: CUDA graph memory pool, shared with other graphs of the same thread; default: one of
            its own.
        enabled: False calls `fn` eagerly with the exact batch, no static buffers (CPU, debugging).
    """

    def __init__(
        self,
        make_inputs: Callable[[int], tuple[Tensor, ...]],
        fn: Callable[..., Tensor],
        batch_sizes: Sequence[int],
        pool: Any | None = None,
        enabled: bool = True,
    ) -> None:
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(
                f"batch sizes must be positive and not empty, got {tuple(batch_sizes)}"
            )
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self.enabled = enabled
        self._fn = fn
        self._example = make_inputs(1)
        self._runners: dict[int, GraphRunner] = {}
        self._padding: dict[int, tuple[Tensor, ...]] = {}
        self._make_inputs = make_inputs
        self._pool = pool
        self._captured: tuple[int, ...] = ()
        self._closed = False

    @property
    def max_batch(self) -> int:
        return self.batch_sizes[-1]

    @property
    def largest(self) -> int:
        """The most rows that a call can have by now."""
        return self._captured[-1] if self.enabled else self.max_batch

    @property
    def captured(self) -> tuple[int, ...]:
        """The sizes that have a graph; a call uses these only."""
        return self._captured

    def capture(self, batch_size: int, alone: bool = False, met: bool = False) -> None:
        """Capture one size, once; does nothing when not enabled. `fn` sees padding rows only.

        Args:
            batch_size: one of `batch_sizes`.
            alone: see `GraphRunner`; by default other threads may call meanwhile.
            met: see `GraphRunner`.
        """
        if not self.enabled or batch_size in self._runners:
            return
        if batch_size not in self.batch_sizes:
            raise ValueError(f"batch size {batch_size} is none of {self.batch_sizes}")
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        inputs = self._make_inputs(batch_size)
        self._padding[batch_size] = tuple(tensor.clone() for tensor in inputs)
        runner = GraphRunner(self._fn, inputs, self._pool, alone, met)
        # Another thread may be calling; it is shown what is complete, and nothing else.
        torch.cuda.current_stream().synchronize()
        self._runners[batch_size] = runner
        self._captured = tuple(sorted(self._runners))

    def capture_all(self) -> None:
        """Capture every size, small ones first, before anything of this thread is replayed."""
        for batch_size in self.batch_sizes:
            self.capture(batch_size, alone=True)

    def pick(self, num_rows: int) -> int:
        """Return the smallest batch size (if enabled: the smallest captured) for `num_rows`.

        Raises:
            ValueError: no size does.
        """
        sizes = self.captured if self.enabled else self.batch_sizes
        index = bisect_left(sizes, num_rows)
        if num_rows < 1 or index == len(sizes):
            raise ValueError(f"{num_rows} rows do not fit the batch sizes {sizes}")
        return sizes[index]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run `fn` on a batch of at most `max_batch` rows and return its rows.

        Args:
            inputs: each [n, ...] with the shape and dtype of the static inputs; may be on the host
                (pinned host memory is copied asynchronously: leave it alone until the current
                stream has passed this call).

        Returns:
            [n, ...]. A view of a static buffer when captured: valid until the next call.

        Raises:
            ValueError: number, shape or dtype of the inputs differ from the static ones.
            RuntimeError: called after `close()`.
        """
        if self._closed:
            raise RuntimeError("the graphs are closed")
        num_rows = self._check(inputs)
        batch_size = self.pick(num_rows)
        if not self.enabled:
            pairs = zip(inputs, self._example, strict=True)
            return self._fn(*(given.to(like.device, non_blocking=True) for given, like in pairs))
        runner = self._runners[batch_size]
        for given, static, padding in zip(
            inputs, runner.inputs, self._padding[batch_size], strict=True
        ):
            static[:num_rows].copy_(given, non_blocking=True)
            if num_rows < batch_size:
                static[num_rows:].copy_(padding[num_rows:])
        return runner()[:num_rows]

    def close(self) -> None:
        """Free the graphs; idempotent."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        self._padding.clear()
        self._closed = True

    def _check(self, inputs: tuple[Tensor, ...]) -> int:
        if len(inputs) != len(self._example):
            raise ValueError(f"{len(inputs)} inputs, expected {len(self._example)}")
        for index, (given, example) in enumerate(zip(inputs, self._example, strict=True)):
            expected = (inputs[0].shape[0], *example.shape[1:])
            if tuple(given.shape) != expected or given.dtype != example.dtype:
                raise ValueError(
                    f"input {index} is {given.dtype} {tuple(given.shape)},"
                    f" expected {example.dtype} {expected}"
                )
        return inputs[0].shape[0]
