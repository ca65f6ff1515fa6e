"""`VllmTalker`: the talker as an asyncio service around an in-process vLLM engine core.

One thread owns the engine: it adds and aborts requests, steps, and hands every step's frames to the
event loops that wait for them, in one call per loop and step. Consumers are async generators;
closing one aborts its request.
"""

import asyncio
import logging
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from serve_app.chunking import Chunker
from serve_app.config import TalkerConfig
from serve_app.errors import InvalidRequest, Overloaded, StageFailed, StageUnavailable
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.models.code_predictor.channel.contract import FrameClient
from serve_app.models.device import DeviceSpec, resolve_device
from serve_app.models.speech_decoder.first_audio import FirstAudioDecoder
from serve_app.models.talker.outbox import Outbox, Stream
from serve_app.models.talker.prompt import build_prompt
from serve_app.models.talker.runtime import (
    PROMPT_KEY,
    RUNTIMES,
    StepFrames,
    TalkerPrompt,
    TalkerRuntime,
)
from serve_app.models.talker.vllm.core import build_core
from serve_app.models.talker.vllm.stepper import MAX_IN_FLIGHT, Stepper
from serve_app.types import CodecFrames, FinishReason, Prompt, SpeechRequest

logger = logging.getLogger(__name__)

_STALL_S = 30.0
_SWITCH_INTERVAL_S = 2e-4


@dataclass(slots=True)
class _Load:
    """Counters written by the engine thread."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    steps: int = 0
    frames: int = 0
    preemptions: int = 0
    last_step: float = field(default_factory=time.monotonic)


class VllmTalker:
    """Implements `protocols.Talker`.

    Args:
        checkpoint: serve_app.models.checkpoint.files.Checkpoint.
        config: engine settings.
        place: device and dtype.
        predictor: where frames are completed; called from the engine thread only.
        chunk_frames: frames per item of a stream: first, second, ...; the last number repeats.
        first_audio: decodes first frames, where the speech decoder is in this process.
    """

    def __init__(
        self,
        checkpoint: Any,
        config: TalkerConfig,
        place: DeviceSpec,
        predictor: FrameClient,
        chunk_frames: Sequence[int] = (1,),
        first_audio: FirstAudioDecoder | None = None,
    ) -> None:
        self.spec = checkpoint.spec
        self.config = config
        self.tokenizer = TextTokenizer.from_dir(checkpoint.path)
        self.predictor = predictor
        self._streams: dict[str, Stream] = {}
        self._inbox: deque[tuple[str, Any]] = deque()
        self._wake = threading.Condition()
        self._chunk_frames = tuple(chunk_frames)
        # A first frame that is not an item of its own is decoded with the others of its item.
        self._first_audio = first_audio if self._chunk_frames[0] == 1 else None
        self._stepper: Stepper | None = None
        self._outbox = Outbox()
        self._load = _Load()
        self._failure: BaseException | None = None
        self._closing = False
        # For benchmarks, which look inside.
        self.core: Any = None
        self.model_state: Any = None
        self._runtime_key = secrets.token_hex(8)
        RUNTIMES[self._runtime_key] = TalkerRuntime(
            self.spec.talker,
            predictor,
            self._note_step,
            self._count_preemption,
            self._streams.__contains__,
            self._first_audio,
        )
        # The engine's thread runs Python most of the time; with the interpreter's default of 5 ms
        # the event loop of this process would wait that long to hand on a frame.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        started = threading.Event()
        # The engine is built on the thread that will step it: vLLM and CUDA keep per-thread state.
        self._thread = threading.Thread(
            target=self._run, args=(checkpoint, place, started), name="talker-engine", daemon=True
        )
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise self._failure

    @classmethod
    def load(
        cls,
        checkpoint: Any,
        config: TalkerConfig,
        device: str,
        predictor: FrameClient,
        chunk_frames: Sequence[int] = (1,),
        first_audio: FirstAudioDecoder | None = None,
    ) -> "VllmTalker":
        """Start the engine; blocks until it can serve.

        Raises:
            CheckpointError, StageUnavailable: the checkpoint or the device is unusable.
        """
        place = resolve_device(device, config.dtype)
        return cls(checkpoint, config, place, predictor, chunk_frames, first_audio)

    # Consumers: any event loop

    async def frames(
        self,
        request: SpeechRequest,
        done: np.ndarray | None = None,
        decoder_slot: int | None = None,
    ) -> AsyncGenerator[CodecFrames, None]:
        """See `protocols.Talker.frames`.

        `decoder_slot` is where `first_audio` decodes the first frame, which then carries its
        samples; it is the stream's until the generator is closed.
        """
        began_s, is_first = time.perf_counter(), True
        prompt = build_prompt(request, self.spec, self.tokenizer, self.config.max_model_len)
        async with aclosing(self.generate(prompt, done, decoder_slot)) as stream:
            async for item in stream:
                if is_first:
                    item, is_first = replace(item, elapsed_s=time.perf_counter() - began_s), False
                yield item

    async def generate(
        self, prompt: Prompt, done: np.ndarray | None = None, decoder_slot: int | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        """Like `frames`, from a prompt that is built already."""
        self.check_health()
        groups = self.spec.talker.num_code_groups
        done = np.zeros((0, groups), np.int64) if done is None else done
        if done.ndim != 2 or done.shape[1] != groups:
            raise InvalidRequest(
                f"done frames must be [T, {groups}], got {list(done.shape)}", "done"
            )
        limit = self.config.max_num_seqs + self.config.max_queued
        if len(self._streams) >= limit:
            raise Overloaded(f"{len(self._streams)} requests are running or waiting, limit {limit}")
        if len(done) >= prompt.max_new_tokens:
            yield CodecFrames(np.zeros((0, groups), np.int64), len(done), "length")
            return
        request_id = f"{prompt.request_id}-{secrets.token_hex(4)}"
        chunker = Chunker(self._chunk_frames, len(done))
        stream = Stream(asyncio.get_running_loop(), asyncio.Queue(), chunker)
        self._streams[request_id] = stream
        self._post("add", (request_id, TalkerPrompt(prompt, done, decoder_slot)))
        finished = False
        try:
            while not finished:
                item = await stream.queue.get()
                if isinstance(item, Exception):
                    raise item
                finished = item.finish_reason is not None
                yield item
        finally:
            self._forget(request_id)
            if not finished:
                self._post("abort", request_id)

    def stats(self) -> Mapping[str, float]:
        load = self._load
        return {
            "running": load.running,
            "waiting": load.waiting,
            "kv_cache_usage": load.kv_cache_usage,
            "steps": load.steps,
            "frames": load.frames,
            "preemptions": load.preemptions,
            "streams": len(self._streams),
        }

    def check_health(self) -> None:
        if self._failure is not None:
            raise StageFailed(f"the talker engine died: {self._failure!r}")
        if self._closing:
            raise StageUnavailable("the talker is closing")
        busy = self._load.running + self._load.waiting > 0
        if busy and time.monotonic() - self._load.last_step > _STALL_S:
            raise StageFailed(f"the talker engine made no step for {_STALL_S:.0f} s")

    def close(self) -> None:
        """Stop the engine thread; streams that still run fail with StageUnavailable."""
        self._closing = True
        self._post("close", None)
        self._thread.join(timeout=20)
        self._outbox.close()
        self.predictor.close()
        RUNTIMES.pop(self._runtime_key, None)

    def _forget(self, request_id: str) -> None:
        # After this, nothing is launched into the stream's decoder slot.
        with self._first_audio.lock if self._first_audio is not None else nullcontext():
            self._streams.pop(request_id, None)

    def _post(self, kind: str, value: Any) -> None:
        with self._wake:
            self._inbox.append((kind, value))
            self._wake.notify()

    # Engine thread

    def _note_step(self, frames: StepFrames) -> None:
        assert self._stepper is not None
        self._stepper.note(frames)

    def _count_preemption(self) -> None:
        self._load.preemptions += 1

    def _run(self, checkpoint: Any, place: DeviceSpec, started: threading.Event) -> None:
        core = None
        try:
            core = build_core(checkpoint, self.config, place, self._runtime_key)
            executor: Any = core.model_executor
            self.core = core
            self.model_state = executor.driver_worker.worker.model_runner.model_state
            late = self.config.late_scheduling and place.device.type == "cuda"
            self._stepper = Stepper(core, late=late)
            started.set()
            self._loop(core, self._stepper)
        except BaseException as error:
            logger.exception("the talker engine stopped")
            self._failure = error
        finally:
            started.set()
            reason = self._failure
            failure = (
                StageFailed(f"the talker engine died: {reason!r}")
                if reason
                else StageUnavailable("the talker was closed")
            )
            self._outbox.deliver((stream, failure) for stream in list(self._streams.values()))
            if core is not None:
                core.shutdown()

    def _loop(self, core: Any, stepper: Stepper) -> None:
        while True:
            if stepper.can_launch:
                pause_s = stepper.pause_s()
                if pause_s > 0:
                    time.sleep(pause_s)
            with self._wake:
                while not self._inbox and not stepper.has_work:
                    self._update_load(core)
                    self._wake.wait()
                messages = list(self._inbox)
                self._inbox.clear()
            for kind, value in messages:
                if kind == "close":
                    return
                if kind == "add":
                    self._add(core, *value)
                else:
                    core.abort_requests([value])
            with torch.inference_mode():
                if stepper.can_launch:
                    self._load.steps += stepper.launch()
                    if stepper.in_flight < MAX_IN_FLIGHT and stepper.can_launch:
                        continue
                if stepper.in_flight:
                    frames, outputs = stepper.collect()
                    if frames is not None:
                        self._dispatch(frames, outputs)
                    self._update_load(core)

    def _add(self, core: Any, request_id: str, work: TalkerPrompt) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        talker = self.spec.talker
        prompt, done = work.prompt, work.done
        # Ids stand in for positions: vLLM counts them, the state builds the embeddings. They are
        # control ids, which can never be sampled.
        ids = [talker.codec_pad_id] * (len(prompt.rows) + len(done))
        params = SamplingParams(
            max_tokens=prompt.max_new_tokens - len(done),
            stop_token_ids=[talker.codec_eos_id],
            detokenize=False,
            extra_args={PROMPT_KEY: work},
        )
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=ids,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        try:
            core.add_request(*core.preprocess_add_request(request))
        except Exception as error:
            logger.exception("vLLM refused request %s", request_id)
            stream = self._streams.get(request_id)
            if stream is not None:
                self._outbox.deliver([(stream, StageFailed(f"vLLM refused it: {error}"))])

    def _dispatch(self, step: StepFrames, outputs: Sequence[Any]) -> None:
        """Match a step's outputs with its codes and hand out what is complete.

        First frames whose audio is being made go last: the others need not wait for it.
        """
        row_of = {request_id: row for row, request_id in enumerate(step.request_ids)}
        codes = step.codes
        first_rows = set(step.audio.rows) if step.audio is not None else ()
        firsts: list[tuple[Stream, int, CodecFrames]] = []
        items: list[tuple[Stream, CodecFrames]] = []
        eos = self.spec.talker.codec_eos_id
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:  # its consumer has gone
                continue
            tokens, reason = output.new_token_ids, output.finish_reason
            if reason is not None:
                reason = _finish_reason(reason)
            elif not tokens:
                continue
            row = row_of[output.request_id] if tokens and tokens[-1] != eos else None
            self._load.frames += row is not None
            frame = codes[:0] if row is None else codes[row : row + 1]
            item = stream.chunker.add(frame, reason)
            if item is None:
                continue
            if row is not None and row in first_rows:
                firsts.append((stream, row, item))
            else:
                items.append((stream, item))
        self._outbox.deliver(items)
        if step.audio is not None:
            # Fetched even if nobody wants it any more: the buffers are used again.
            self._outbox.deliver_audio(step.audio, firsts, wait=step.is_small)

    def _update_load(self, core: Any) -> None:
        scheduler, load = core.scheduler, self._load
        load.running = len(scheduler.running)
        load.waiting = len(scheduler.waiting)
        load.kv_cache_usage = scheduler.kv_cache_manager.usage
        load.last_step = time.monotonic()


def _finish_reason(reason: Any) -> FinishReason:
    return "stop" if str(reason) == "stop" else "length"
