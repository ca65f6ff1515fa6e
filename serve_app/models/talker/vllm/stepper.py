"""vLLM's engine core, stepped by hand: the next step is launched while one is on the device.

The core's own `step_fn` launches and waits in one call. Apart they can be timed: a step that is
launched only shortly before the one before it ends takes along every request that came meanwhile.
"""

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from serve_app.models.talker.runtime import StepFrames

MAX_IN_FLIGHT: Final = 2

# Additive increase, multiplicative decrease of the pause before a launch. Too long a pause costs
# the device an idle moment, too short a one costs a new request a part of a step.
_LONGER_S: Final = 5e-5
_SHORTER: Final = 0.8
_LONGEST_S: Final = 0.05


@dataclass(slots=True)
class _Flight:
    """A step on its way; `frames` is None if it computes nothing that anybody waits for."""

    future: Any
    scheduled: Any
    executed: Any
    frames: StepFrames | None
    launched_s: float
    rows: int

    @property
    def is_first_audio(self) -> bool:
        """Whether first audio is being made of it on a device that few others wait for."""
        frames = self.frames
        return frames is not None and frames.audio is not None and frames.is_small


class Stepper:
    """Launches and collects the steps of a core. Belongs to one thread.

    Args:
        core: vllm.v1.engine.core.EngineCore with asynchronous scheduling.
        late: whether `pause_s` asks for a pause; without one, a launch follows as soon as it can.
    """

    def __init__(self, core: Any, *, late: bool) -> None:
        self._core = core
        self._late = late
        self._flights: deque[_Flight] = deque()
        self._pending: StepFrames | None = None
        self._free_s = 0.0
        # By the order of magnitude of the batch, which is what a step's duration depends on.
        self._pauses: defaultdict[int, float] = defaultdict(float)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def has_work(self) -> bool:
        return bool(self._flights) or self.can_launch

    @property
    def can_launch(self) -> bool:
        if len(self._flights) >= MAX_IN_FLIGHT or not self._core.scheduler.has_requests():
            return False
        return not (self._late and self._flights and self._flights[-1].is_first_audio)

    def note(self, frames: StepFrames) -> None:
        """Called by the model state, inside `launch`, with what the step will have made."""
        self._pending = frames

    def pause_s(self) -> float:
        """Seconds until the next launch should begin: 0 unless a step is on the device."""
        if not (self._late and self._flights):
            return 0.0
        flight = self._flights[-1]
        started_s = max(self._free_s, flight.launched_s)
        return max(0.0, started_s + self._pauses[flight.rows.bit_length()] - time.perf_counter())

    def launch(self) -> bool:
        """Schedule a step and enqueue it on the device; whether it computes anything."""
        core = self._core
        scheduled = core.scheduler.schedule()
        executed = core.model_executor.execute_model(scheduled, non_block=True)
        computes = scheduled.total_num_scheduled_tokens > 0
        self._pending = None
        future = executed
        if computes:
            grammar = core.scheduler.get_grammar_bitmask(scheduled)
            future = core.model_executor.sample_tokens(grammar, non_block=True)
        if self._late and self._flights:
            self._learn(self._flights[-1])
        self._flights.append(
            _Flight(
                future,
                scheduled,
                executed,
                self._pending,
                time.perf_counter(),
                len(scheduled.num_scheduled_tokens),
            )
        )
        return computes

    def collect(self) -> tuple[StepFrames | None, Sequence[str], Sequence[Any]]:
        """Wait for the oldest step.

        Returns:
            Its frames; the requests that got one and go on; and vLLM's outputs of others.
        """
        flight = self._flights.popleft()
        frames = flight.frames
        if frames is not None and frames.audio is not None and frames.copied is not None:
            # Someone waits for a first frame: vLLM's own wait sleeps, and wakes up late.
            frames.copied.synchronize()
        output = flight.future.result()
        self._free_s = time.perf_counter()
        if output is None:
            # The launch failed; its own result carries the reason.
            flight.executed.result()
            raise RuntimeError("vLLM returned no output for a step")
        going_on, outputs = self._core.scheduler.advance(flight.scheduled, output)
        return frames, going_on, outputs[0].outputs if 0 in outputs else ()

    def _learn(self, before: _Flight) -> None:
        """Note whether the device still worked on the step before when the next was enqueued."""
        if before.frames is None:
            return
        bucket = before.rows.bit_length()
        done = before.frames.done
        if done is None or done.query():
            self._pauses[bucket] *= _SHORTER
        else:
            self._pauses[bucket] = min(_LONGEST_S, self._pauses[bucket] + _LONGER_S)
