"""The thread that owns the talker's engine: requests in, steps, frames out.

It adds and aborts requests, steps the engine, and hands every step's frames to the event loops that
wait for them, in one call per loop and step. When the engine fails, `on_death` is told.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from serve_app.chunking import FramesHeld
from serve_app.errors import StageFailed, StageUnavailable
from serve_app.models.checkpoint.spec import TalkerSpec
from serve_app.models.code_predictor.channel.contract import FrameClient
from serve_app.models.process_end import OnDeath
from serve_app.models.speech_decoder.first_audio import FirstAudioDecoder
from serve_app.models.step_times import StepTimes
from serve_app.models.talker.outbox import Item, Outbox, TalkerStream
from serve_app.models.talker.progress import Progress
from serve_app.models.talker.runtime import StepFrames, TalkerPrompt, TalkerRuntime
from serve_app.types import CodecFrames, FinishReason, Health

if TYPE_CHECKING:  # vLLM is imported on the thread, once its environment is set
    from serve_app.models.talker.vllm.core import TalkerCore

_SWITCH_INTERVAL_S: Final = 2e-4
_JOIN_TIMEOUT_S: Final = 20.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Load:
    """Counters written by the engine thread."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    steps: int = 0
    frames: int = 0
    prompt_tokens: int = 0
    preemptions: int = 0


class EngineThread:
    """Starts the engine; returns when it can serve.

    `submit`, `withdraw`, `stats` and `health` are for any thread, `close` for the owner's.

    Args:
        build: makes the core; called on the thread, as vLLM and CUDA keep per-thread state.
        spec: of the talker.
        predictor: where frames are completed; called on the thread only.
        first_audio: decodes first frames, where the speech decoder is in this process.
        on_death: called on the thread, while the exception is being handled, when the engine has
            failed; and by whoever asks for the health of one that hangs. If it returns, streams
            fail with StageFailed, or wait on.
        stall_s: how long a step may take.
        chunk_frames: frames per item of a stream: first, second, ...; the last number repeats.

    Raises:
        Exception: whatever `build` raises.
    """

    def __init__(
        self,
        build: "Callable[[TalkerRuntime], TalkerCore]",
        spec: TalkerSpec,
        predictor: FrameClient,
        first_audio: FirstAudioDecoder | None,
        on_death: OnDeath,
        stall_s: float,
        chunk_frames: Sequence[int] = (1,),
    ) -> None:
        # Both for benchmarks and tests, which look inside: see `VllmTalker.inspect`.
        self.core: TalkerCore | None = None
        self.first_audio = first_audio
        self._spec = spec
        self._predictor = predictor
        self._on_death = on_death
        self._streams: dict[str, TalkerStream] = {}
        # The thread's: what its streams have not got yet, and where that is.
        self._held = FramesHeld(chunk_frames, spec.num_code_groups)
        self._lanes: dict[str, int] = {}
        # Requests to add, each with its work; without it, to abort.
        self._inbox: deque[tuple[str, TalkerPrompt | None]] = deque()
        # Guards inbox, flags and the way into `_streams`.
        self._wake = threading.Condition()
        self._closing = False
        self._step_times = StepTimes()
        self._ended = False
        self._failure: BaseException | None = None
        self._stall_s = stall_s
        self._progress = Progress()
        self._outbox = Outbox()
        self._load = _Load()
        runtime = TalkerRuntime(
            spec,
            predictor,
            self._note_step,
            self._note_begin,
            self._count_preemption,
            self._refuse,
            self._streams.__contains__,
            first_audio,
        )
        # The thread runs Python most of the time; with the interpreter's default of 5 ms the event
        # loop of this process would wait that long to hand on a frame.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(build, runtime, started), name="talker-engine", daemon=True
        )
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise self._failure

    # Any thread

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def submit(self, request_id: str, stream: TalkerStream, work: TalkerPrompt) -> None:
        """Start a request, whose items go to `stream` from now on.

        Raises:
            StageUnavailable: the engine has ended.
        """
        with self._wake:
            # Under the lock: once the thread has told its streams that it ends, none may follow.
            reason = self._end()
            if reason is not None:
                raise StageUnavailable(reason)
            self._streams[request_id] = stream
            self._post(request_id, work)

    def withdraw(self, request_id: str, *, finished: bool) -> None:
        """End a stream; its request is aborted unless it has `finished`.

        After this, nothing is launched into the stream's decoder slot.
        """
        with self.first_audio.lock if self.first_audio is not None else nullcontext():
            self._streams.pop(request_id, None)
        if not finished:
            with self._wake:
                self._post(request_id, None)

    def stats(self) -> Mapping[str, float]:
        load = self._load
        return {
            "running": load.running,
            "waiting": load.waiting,
            "kv_cache_usage": load.kv_cache_usage,
            "steps": load.steps,
            "step_s": self._step_times.total_s,
            **self._step_times.stats(),
            "frames": load.frames,
            "prompt_tokens": load.prompt_tokens,
            "preemptions": load.preemptions,
            "streams": len(self._streams),
        }

    def health(self) -> Health:
        """Works while the engine gets on or looks for a code predictor; one that hangs, dies."""
        now_s, reason = time.monotonic(), self._end()
        busy_s = self._progress.busy_s(now_s, self._predictor.reached_s)
        if reason is None and busy_s > self._stall_s:
            reason = f"the talker engine made no step for {self._stall_s:.0f} s"
            self._on_death(reason)
        state = "works" if reason is None else "unavailable"
        return Health(state, reason or "", busy_s, self._progress.ago_s(now_s))

    def close(self) -> None:
        """Stop the thread; streams that still run fail with StageUnavailable."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=_JOIN_TIMEOUT_S)
        self._outbox.close()

    def _end(self) -> str | None:
        """Why the engine has ended; None: it has not."""
        if self._failure is not None:
            return f"the talker engine died: {self._failure!r}"
        return "the talker is closed" if self._closing or self._ended else None

    def _post(self, request_id: str, work: TalkerPrompt | None) -> None:
        """With the lock held."""
        self._progress.wake(time.monotonic())
        self._inbox.append((request_id, work))
        self._wake.notify()

    # The thread itself

    def _run(
        self,
        build: "Callable[[TalkerRuntime], TalkerCore]",
        runtime: TalkerRuntime,
        started: threading.Event,
    ) -> None:
        core = None
        try:
            self.core = core = build(runtime)
            started.set()
            self._loop(core)
        except BaseException as error:
            self._failure = error
            if core is not None:
                self._on_death(f"the talker engine died: {error!r}")
        finally:
            with self._wake:
                self._ended = True
                left = list(self._streams.values())
            started.set()
            reason: Exception = StageUnavailable("the talker was closed")
            if self._failure is not None:
                reason = StageFailed(f"the talker engine died: {self._failure!r}")
            self._outbox.deliver((stream, reason) for stream in left)
            if core is not None:
                core.shutdown()

    def _loop(self, core: "TalkerCore") -> None:
        stepper = core.stepper
        since_s = 0.0  # the step that is collected next has taken
        while True:
            if stepper.can_launch:
                pause_s = stepper.pause_s()
                if pause_s > 0:
                    time.sleep(pause_s)
            messages = self._take(core)
            if self._closing:
                return
            for request_id, work in messages:
                if work is None:
                    core.abort(request_id)
                    self._close_lane(request_id)
                else:
                    self._add(core, request_id, work)
            with torch.inference_mode():
                if stepper.can_launch:
                    if not stepper.in_flight:
                        since_s = time.perf_counter()
                    self._load.steps += stepper.launch()
                    if stepper.can_launch:
                        continue
                if stepper.in_flight:
                    frames, going_on, outputs = stepper.collect()
                    now_s = time.perf_counter()
                    self._step_times.note(now_s - since_s)
                    since_s = now_s
                    if frames is not None:
                        self.dispatch(frames, going_on, outputs)
                    self._note_load(core)

    def _take(self, core: "TalkerCore") -> list[tuple[str, TalkerPrompt | None]]:
        """What there is to add and to abort; waits for some while there is nothing else to do."""
        with self._wake:
            while not self._inbox and not self._closing and not core.stepper.has_work:
                self._note_load(core)
                self._progress.rest()
                self._wake.wait()
            messages = list(self._inbox)
            self._inbox.clear()
        return messages

    def _add(self, core: "TalkerCore", request_id: str, work: TalkerPrompt) -> None:
        try:
            core.add(request_id, work)
        except Exception as error:
            self._refuse(request_id, error)
            return
        self._lanes[request_id] = self._held.open(len(work.done))
        self._load.prompt_tokens += len(work.prompt.rows)

    def _refuse(self, request_id: str, error: Exception) -> None:
        """Fail one stream, whose consumer then aborts its request; the others go on."""
        logger.error("request %s cannot be run", request_id, exc_info=error)
        stream = self._streams.get(request_id)
        if stream is not None:
            failure = StageFailed(f"the talker cannot run {request_id}: {error!r}")
            self._outbox.deliver([(stream, failure)])

    def _note_step(self, frames: StepFrames) -> None:
        assert self.core is not None
        self.core.stepper.note(frames)

    def _note_begin(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is not None and stream.begun_s is None:  # else it comes back
            stream.begun_s = time.perf_counter()

    def _count_preemption(self) -> None:
        self._load.preemptions += 1

    def dispatch(self, step: StepFrames, going_on: Sequence[str], outputs: Sequence[Any]) -> None:
        """Match what a step did with its codes and hand out what is complete.

        First frames whose audio is being made go last: the others need not wait for it.

        Args:
            step: the frames.
            going_on: requests that have one of them and will have more.
            outputs: vLLM's, of other requests.
        """
        codes, eos = step.codes, self._spec.codec_eos_id
        row_of = {request_id: row for row, request_id in enumerate(step.request_ids)}
        with_frame, ends = list(going_on), dict[str, FinishReason]()
        for output in outputs:
            name, tokens = output.request_id, output.new_token_ids
            if name not in self._lanes:
                continue
            if tokens and tokens[-1] != eos:
                with_frame.append(name)
            if output.finish_reason is not None:
                ends[name] = _finish_reason(output.finish_reason)
        items: list[tuple[TalkerStream, Item]] = []
        lost_rows = _lost_rows(codes)
        if lost_rows:
            for name in [name for name in with_frame if row_of[name] in lost_rows]:
                with_frame.remove(name)
                if ends.pop(name, None) is not None:
                    self._close_lane(name)
                if (stream := self._streams.get(name)) is not None:
                    lost = StageUnavailable("the code predictor was lost while it made a frame")
                    items.append((stream, lost))
        self._load.frames += len(with_frame)
        rows = [row_of[name] for name in with_frame]
        lanes = np.array([self._lanes[name] for name in with_frame], np.int64)
        whole = [with_frame[place] for place in self._held.add(lanes, codes[rows])]
        first_rows = set(step.audio.rows) if step.audio is not None else ()
        firsts: list[tuple[TalkerStream, int, CodecFrames]] = []
        for name in dict.fromkeys((*whole, *ends)):
            item = self._held.take(self._lanes[name], ends.get(name))
            if name in ends:
                self._close_lane(name)
            stream = self._streams.get(name)
            if stream is None:  # its consumer has gone
                continue
            row = row_of.get(name)
            if row is not None and row in first_rows and len(item.codes):
                firsts.append((stream, row, item))
            else:
                items.append((stream, item))
        self._outbox.deliver(items)
        if step.audio is not None:
            # Fetched even if nobody wants it any more: the buffers are used again.
            self._outbox.deliver_audio(step.audio, firsts, wait=step.is_small)

    def _close_lane(self, request_id: str) -> None:
        lane = self._lanes.pop(request_id, None)
        if lane is not None:
            self._held.close(lane)

    def _note_load(self, core: "TalkerCore") -> None:
        load = self._load
        load.running, load.waiting, load.kv_cache_usage = core.load()
        self._progress.step(time.monotonic())


def _lost_rows(codes: np.ndarray) -> frozenset[int]:
    """Rows (of int64 [B, Q]) whose frame was never made: a code predictor that is lost on the
    device leaves -1 behind.
    """
    if not codes.size or codes.min() >= 0:
        return frozenset()
    rows = frozenset(np.flatnonzero((codes < 0).any(axis=1)).tolist())
    logger.warning("a code predictor was lost: %d streams have no frame of this step", len(rows))
    return rows


def _finish_reason(reason: Any) -> FinishReason:
    return "stop" if str(reason) == "stop" else "length"
