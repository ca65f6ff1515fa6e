"""What the deployments record of streams: what they lost, what was refused, what was cut; and
of sessions, how they ended."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from math import inf
from typing import Final

import numpy as np
from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app import metrics
from serve_app.errors import Overloaded
from serve_app.resumption import Observe, Outcome, T
from serve_app.types import SpeechRequest, Stage

_OUTCOMES: Final = {"resumed": metrics.STREAMS_RESUMED, "lost": metrics.STREAMS_LOST}


def ray_recorder() -> metrics.Recorder:
    """For a replica, which Ray names in every series."""
    return metrics.MetricsRecorder(Counter, Histogram, Gauge)


def of_hop(recorder: metrics.Recorder, hop: str) -> Observe:
    """Counts the losses at the hop that leaves the deployment `hop`."""

    def observe(outcome: Outcome, silent_s: float) -> None:
        recorder.count(_OUTCOMES[outcome], hop=hop)
        if outcome == "resumed":
            recorder.observe(metrics.STREAM_SILENCE, silent_s, hop=hop)

    return observe


async def recorded(
    items: AsyncGenerator[T, None],
    request: SpeechRequest,
    done: np.ndarray | None,
    recorder: metrics.Recorder,
    *stages: Stage,
) -> AsyncGenerator[T, None]:
    """Pass on the stream of a request after `done` (int64 [T, Q]), and count how it ends.

    `stages` are the ones of this replica: what another one refuses or cuts is counted over there.
    """
    num_frames = 0 if done is None else len(done)
    try:
        async with aclosing(items):
            async for item in items:
                num_frames += len(item.codes)
                is_at_limit = item.finish_reason == "length"
                if is_at_limit and "talker" in stages and not request.ends_at(num_frames):
                    recorder.count(metrics.SPEECH_CUT)
                yield item
    except Overloaded as error:
        if error.stage in stages:
            recorder.count(metrics.STAGE_REFUSED, stage=error.stage)
        raise


class StageStats:
    """Passes on what a stage says of itself: its load, its work, the kernels it has met too late.

    Args:
        stage: the label; in `fused`, where one process has them all, that one's.
    """

    def __init__(self, recorder: metrics.Recorder, stage: str) -> None:
        self._recorder = recorder
        self._stage = stage
        self._counted: dict[str, float] = {}

    def note(self, stats: Mapping[str, float]) -> None:
        """Record the present load, and count what came since the last call."""
        stage = {"stage": self._stage}
        self._recorder.set(metrics.STAGE_WAITING, stats.get("waiting", 0), **stage)
        running = stats.get("running", stats.get("streams", 0))
        self._recorder.set(metrics.STAGE_RUNNING, running, **stage)
        if "kv_cache_usage" in stats:
            self._recorder.set(metrics.KV_CACHE_USAGE, stats["kv_cache_usage"])
        self._count(metrics.LATE_KERNELS, stats, "late_kernels", **stage)
        self.note_work(stats)
        self._count(metrics.KV_PREEMPTIONS, stats, "preemptions")
        self._count(metrics.PROMPT_TOKENS, stats, "prompt_tokens")

    def note_work(self, stats: Mapping[str, float]) -> None:
        """Count the work alone, of a stage whose load is that of another beside it."""
        stage = {"stage": self._stage}
        self._count(metrics.STAGE_STEPS, stats, "steps", **stage)
        self._count(metrics.STAGE_FRAMES, stats, "frames", **stage)
        for bound in (*metrics.STAGE_STEP.buckets, inf):
            number, step_s = (self._since(stats, name) for name in metrics.step_counters(bound))
            for _ in range(round(number)):
                # The mean of a bucket lies in it, and keeps the sum.
                self._recorder.observe(metrics.STAGE_STEP, min(bound, step_s / number), **stage)

    def _count(
        self, metric: metrics.Metric, stats: Mapping[str, float], name: str, **labels: str
    ) -> None:
        self._recorder.add(metric, self._since(stats, name), **labels)

    def _since(self, stats: Mapping[str, float], name: str) -> float:
        """By how much a counter has grown since the last call."""
        now = stats.get(name, 0)
        before, self._counted[name] = self._counted.get(name, 0), now
        return now - before


def load_of(stats: Mapping[str, float]) -> dict[str, float]:
    """What Serve is told each second: `stats` without the buckets of the times of steps."""
    return {name: value for name, value in stats.items() if "<" not in name}


@contextmanager
def recorded_session(recorder: metrics.Recorder) -> Iterator[None]:
    """Count how the session inside ends; a talker that leaves closes or cancels it."""
    end = "left"
    try:
        yield
        end = "over"
    except Exception:
        end = "failed"
        raise
    finally:
        recorder.count(metrics.PREDICTOR_SESSIONS, end=end)
