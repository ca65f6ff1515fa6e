"""What passes between the engine's owner and the hooks that vLLM builds: prompts in, frames out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from serve_app.models.checkpoint.spec import TalkerSpec
from serve_app.models.code_predictor.channel.contract import FrameClient
from serve_app.models.speech_decoder.first_audio import FirstAudio, FirstAudioDecoder
from serve_app.types import Prompt

_FEW_ROWS: Final = 8

PROMPT_KEY = "tts_prompt"
RUNTIME_KEY = "tts_runtime"
# Whether codes may depend on nothing but their own request.
DETERMINISTIC_KEY = "tts_deterministic"


@dataclass(frozen=True, slots=True)
class TalkerPrompt:
    """What travels in `SamplingParams.extra_args`.

    done: int64 [T, Q], the frames made before.
    decoder_slot: where the speech decoder of this process expects the stream; None if it does not.
    due_s: when its first frame is wanted, by `time.monotonic`: of those that wait for a place, or
        for room in a step, the earliest is prefilled first.
    """

    prompt: Prompt
    done: np.ndarray
    decoder_slot: int | None = None
    due_s: float = 0.0


class StepFrames:
    """The frames of one engine step, from the launch until the engine's owner hands them out.

    Rides vLLM's asynchronous output copy: codes go to the host on its copy stream. vLLM asks its
    log-probability tensors for two things, `to_cpu_nonblocking` when the copy stream is active and
    `tolists` once the copies have arrived; nothing else of them is looked at.

    Args:
        request_ids: one per row.
        codes: int64 [B, Q], on the device.
        audio: first frames of the step that are being decoded.
    """

    def __init__(self, request_ids: list[str], codes: Tensor, audio: FirstAudio | None) -> None:
        self.request_ids = request_ids
        self.audio = audio
        self._device_codes = codes  # kept alive: the copy runs on another stream
        self._host_codes: Tensor | None = None
        # Of the step on the device, and of the copy; on CPU nothing is ever under way.
        self.done = _record(codes.device)
        self.copied: torch.cuda.Event | None = None

    @property
    def is_small(self) -> bool:
        """Whether so few streams can spare the time that the device gives to first audio alone."""
        return len(self.request_ids) <= _FEW_ROWS

    @property
    def codes(self) -> np.ndarray:
        """int64 [B, Q], on the host, once vLLM has the step's output."""
        assert self._host_codes is not None
        return self._host_codes.numpy()

    def to_cpu_nonblocking(self) -> "StepFrames":
        self._host_codes = self._device_codes.to("cpu", non_blocking=True)
        self.copied = _record(self._device_codes.device)
        return self

    def tolists(self) -> None:
        return


def _record(device: torch.device) -> torch.cuda.Event | None:
    """An event on the current stream, waited for by spinning; None on CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


@dataclass(frozen=True, slots=True)
class TalkerRuntime:
    """What the engine's owner gives to scheduler and state.

    on_step: told of each launched step.
    on_begin: told of a request, anew or again, whose first positions are in the step that is being
        launched.
    on_restore: told that a preempted request came back.
    on_refusal: told of a request that cannot be set up, and why; the step goes on without it.
    is_wanted: whether somebody still consumes a request; called with the lock of `first_audio`.
    preempted: requests that lost their memory and will come back; kept by the scheduler.
    """

    spec: TalkerSpec
    predictor: FrameClient
    on_step: Callable[[StepFrames], None]
    on_begin: Callable[[str], None]
    on_restore: Callable[[], None]
    on_refusal: Callable[[str, Exception], None]
    is_wanted: Callable[[str], bool]
    first_audio: FirstAudioDecoder | None = None
    preempted: set[str] = field(default_factory=set)


# vLLM builds scheduler and state itself and its config carries plain values only; all of
# them share a process.
RUNTIMES: dict[str, TalkerRuntime] = {}
