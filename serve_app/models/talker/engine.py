"""`VllmTalker`: the talker as an asyncio service around an in-process vLLM engine core.

Consumers are async generators; closing one aborts its request. The engine lives on a thread of its
own (`engine_thread`).
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from serve_app.config import TalkerConfig
from serve_app.load.admission import Admission
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.models.code_predictor.channel.contract import FrameClient
from serve_app.models.device import resolve_device
from serve_app.models.late_kernels import late_kernels
from serve_app.models.process_end import OnDeath, end_process
from serve_app.models.rehearsal import rehearse
from serve_app.models.speech_decoder.first_audio import FirstAudioDecoder
from serve_app.models.talker.checks import check_work
from serve_app.models.talker.engine_thread import EngineThread
from serve_app.models.talker.outbox import TalkerStream
from serve_app.models.talker.prompt import PromptBuilder
from serve_app.models.talker.runtime import TalkerPrompt
from serve_app.models.talker.vllm.core import build_core
from serve_app.protocols import require
from serve_app.types import CodecFrames, Health, Prompt, SpeechRequest

# After how long work that nobody listens to comes before a listener's request.
_BACKGROUND_S: Final = 60.0

logger = logging.getLogger(__name__)


class VllmTalker:
    """Implements `protocols.Talker`. Blocks until the engine can serve.

    Args:
        checkpoint: serve_app.models.checkpoint.files.Checkpoint.
        config: engine settings.
        device: auto, cuda or cpu.
        predictor: where frames are completed; called from the engine's thread only.
        chunk_frames: frames per item of a stream: first, second, ...; the last number repeats.
        first_audio: decodes first frames, where the speech decoder is in this process.
        on_death: what happens when the engine fails; see `EngineThread`.
        stall_s: without a step for so long, an engine that has requests is not healthy.

    Raises:
        CheckpointError, StageUnavailable: the checkpoint or the device is unusable.
    """

    def __init__(
        self,
        checkpoint: Any,
        config: TalkerConfig,
        device: str,
        predictor: FrameClient,
        chunk_frames: Sequence[int] = (1,),
        first_audio: FirstAudioDecoder | None = None,
        *,
        on_death: OnDeath = end_process,
        stall_s: float = 30.0,
    ) -> None:
        self.spec = checkpoint.spec
        self.config = config
        self.tokenizer = TextTokenizer.from_dir(checkpoint.path)
        self._prompts = PromptBuilder(self.spec, self.tokenizer, config.max_model_len)
        self.predictor = predictor
        # Told apart here, where a resumed or repeated request has the id of another.
        self._numbers = itertools.count()
        self._num_cut = 0
        self._num_arriving = 0
        self.admission = Admission(config.max_queued, config.max_wait_s, "talker")
        place = resolve_device(device, config.dtype)
        self._thread = EngineThread(
            partial(build_core, checkpoint, config, place),
            self.spec.talker,
            predictor,
            # A first frame that is not an item of its own is decoded with the others of its item.
            first_audio if chunk_frames[0] == 1 else None,
            on_death,
            stall_s,
            chunk_frames,
        )

    @property
    def inspect(self) -> EngineThread:
        """For benchmarks and tests, which look and reach inside."""
        return self._thread

    async def frames(
        self,
        request: SpeechRequest,
        done: np.ndarray | None = None,
        decoder_slot: int | None = None,
        prompt: Prompt | None = None,
    ) -> AsyncGenerator[CodecFrames, None]:
        """See `protocols.FrameSource.frames`.

        `decoder_slot` is where `first_audio` decodes the first frame, which then carries its
        samples; it is the stream's until the generator is closed. `prompt` is that of `request`
        where a `PromptBuilder` elsewhere has laid it out.
        """
        began_s, is_first = time.perf_counter(), True
        # Before any work. Who is let in counts from here on, also while a thread reads its text.
        num_streams = self._thread.num_streams + self._num_arriving
        self.admission.check(
            num_streams,
            self.config.max_num_seqs,
            goes_on=request.is_heard(done),
            background=request.background,
            longest_wait_s=request.longest_wait_s,
        )
        if prompt is None:
            self._num_arriving += 1
            try:
                prompt = await self._prompts.build(request)
            finally:
                self._num_arriving -= 1
        resumed = done is not None and len(done) > 0
        due_s = _due_s(request, resumed)
        async with aclosing(self.generate(prompt, done, decoder_slot, due_s)) as stream:
            async for item in stream:
                if item.finish_reason == "length":
                    self._note_cut(request, item.first_frame + len(item.codes))
                if is_first:
                    elapsed_s, is_first = time.perf_counter() - began_s, False
                    tokens = None if resumed else prompt.tokens
                    item = replace(item, elapsed_s=elapsed_s, tokens=tokens)
                yield item

    async def generate(
        self,
        prompt: Prompt,
        done: np.ndarray | None = None,
        decoder_slot: int | None = None,
        due_s: float = 0.0,
    ) -> AsyncGenerator[CodecFrames, None]:
        """Like `frames`, from a prompt that is built already, and past the admission."""
        require(self.health())
        groups = self.spec.talker.num_code_groups
        done = np.zeros((0, groups), np.int64) if done is None else done
        work = TalkerPrompt(prompt, done, decoder_slot, due_s)
        check_work(work, self.spec, self.config.max_model_len)
        if len(done) >= prompt.max_new_tokens:
            yield CodecFrames(np.zeros((0, groups), np.int64), len(done), "length")
            return
        request_id = f"{prompt.request_id}-{next(self._numbers)}"
        stream = TalkerStream(asyncio.get_running_loop(), asyncio.Queue())
        submitted_s = time.perf_counter()
        self._thread.submit(request_id, stream, work)
        finished, first_s = False, None
        try:
            while not finished:
                item = await stream.queue.get()
                if isinstance(item, Exception):
                    raise item
                if first_s is None:
                    first_s = time.monotonic()
                    assert stream.begun_s is not None
                    item = replace(item, queued_s=stream.begun_s - submitted_s)
                finished = item.finish_reason is not None
                yield item
        finally:
            self._thread.withdraw(request_id, finished=finished)
            if first_s is not None:
                self.admission.note(time.monotonic() - first_s)

    def rehearse(self) -> None:
        """Go through every size of load once; blocks, and not where an event loop runs.

        Raises:
            SpeechError: as `frames`.
        """
        most, positions = self.config.max_num_seqs, self.config.max_num_batched_tokens
        asyncio.run(rehearse(self.frames, self.spec, most, positions))
        self.admission.forget()

    def stats(self) -> Mapping[str, float]:
        late = late_kernels.count
        return {**self._thread.stats(), "cut": self._num_cut, "late_kernels": late}

    def health(self) -> Health:
        return self._thread.health()

    def close(self) -> None:
        """Stop the engine; streams that still run fail with StageUnavailable."""
        self._thread.close()
        self.predictor.close()

    def _note_cut(self, request: SpeechRequest, frames: int) -> None:
        """Leave a trace of speech that ended at a limit which its client did not set."""
        if request.ends_at(frames):
            return
        self._num_cut += 1
        logger.warning(
            "%s: speech of %d characters was cut after %d frames",
            request.request_id,
            len(request.text),
            frames,
        )


def _due_s(request: SpeechRequest, resumed: bool) -> float:
    """When the first frame of a request that comes now is wanted; of one that is resumed, since
    long: its listener may hear nothing by now.
    """
    if request.background:
        return time.monotonic() + _BACKGROUND_S
    return 0.0 if resumed else time.monotonic() + (request.ahead_s or 0.0)
