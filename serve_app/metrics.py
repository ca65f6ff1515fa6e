"""Every metric: name with unit, help, buckets, labels.

Nothing here knows where metrics go. A deployment, ingress or stage, gives `MetricsRecorder` the
counter and histogram classes of `ray.serve.metrics`; everything else records into `NoRecorder`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter, or a histogram where it has buckets.

    Values of `labels` are members of small closed sets (formats, statuses, kinds of error), never
    what a client sent: each makes a series of its own.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_FORMAT: Final = ("format", "transport")

TIME_TO_FIRST_AUDIO: Final = Metric(
    "tts_time_to_first_audio_seconds",
    "From the request fully read to its first audio byte handed to the transport.",
    _FORMAT,
    # Most of the interest lies below 0.1 s.
    (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0),
)
REQUEST_DURATION: Final = Metric(
    "tts_request_duration_seconds",
    "From the request fully read to the end of its response, complete or not.",
    _FORMAT,
    (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0),
)
AUDIO_DURATION: Final = Metric(
    "tts_audio_duration_seconds",
    "Length of the audio of a complete response.",
    _FORMAT,
    (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0),
)
REQUESTS: Final = Metric(
    "tts_requests_total",
    "Speech requests by HTTP status; 499 = the client left before the first audio.",
    ("status",),
)
FINISHED: Final = Metric(
    "tts_audio_finished_total",
    "Complete audio responses: stop = the model came to an end, length = a limit cut it short.",
    ("reason",),
)
STREAMS_ABORTED: Final = Metric(
    "tts_streams_aborted_total",
    "Audio responses that broke off after their first byte.",
    ("reason",),
)
_HOP: Final = ("hop",)

STREAMS_RESUMED: Final = Metric(
    "tts_streams_resumed_total",
    "Losses after which a stream went on, by the deployment that asked again: ingress for all"
    " stages, speech_decoder for the talker.",
    _HOP,
)
STREAMS_LOST: Final = Metric(
    "tts_streams_lost_total",
    "Losses after which a stream was given up, by the deployment that did.",
    _HOP,
)
STREAM_SILENCE: Final = Metric(
    "tts_stream_silence_seconds",
    "From the last audio or frames before a loss, or the call, to the first after it.",
    _HOP,
    (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0),
)
STAGE_REFUSED: Final = Metric(
    "tts_stage_refused_total",
    "Calls that a stage had no room for, also those that are made again.",
    ("stage",),
)
SPEECH_CUT: Final = Metric(
    "tts_speech_cut_total",
    "Speech that ended at a limit of the server's, not of its client's.",
)
LATE_KERNELS: Final = Metric(
    "tts_kernels_compiled_late_total",
    "Kernels that were compiled, or fetched from the cache, after their stage was ready: each has"
    " made requests wait. To stay 0.",
    ("stage",),
)
PREDICTOR_SESSIONS: Final = Metric(
    "tts_predictor_sessions_total",
    "Sessions of talkers at code predictors, by end: over = its time, left = by the talker, failed"
    " = the predictor cannot work.",
    ("end",),
)


SCALING_DECISIONS: Final = Metric(
    "tts_scaling_decisions_total",
    "Changes of the number of replicas that the scaling policy decided, by their reason.",
    ("reason",),
)


class Recorder(Protocol):
    def count(self, metric: Metric, **labels: str) -> None: ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None: ...


class NoRecorder:
    """Forgets everything."""

    def count(self, metric: Metric, **labels: str) -> None:
        del metric, labels

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        del metric, value, labels


class MetricsRecorder:
    """Records through classes that are called like `ray.serve.metrics.Counter` and `Histogram`.

    A series begins with its first value, so that a process has only those of its own stage.
    """

    def __init__(self, counter: Callable[..., Any], histogram: Callable[..., Any]) -> None:
        self._counter = counter
        self._histogram = histogram
        self._series: dict[str, Any] = {}

    def count(self, metric: Metric, **labels: str) -> None:
        self._get(metric).inc(tags=labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._get(metric).observe(value, tags=labels)

    def _get(self, metric: Metric) -> Any:
        series = self._series.get(metric.name)
        if series is None:
            options: dict[str, Any] = {"description": metric.help, "tag_keys": metric.labels}
            if metric.buckets:
                series = self._histogram(metric.name, boundaries=list(metric.buckets), **options)
            else:
                series = self._counter(metric.name, **options)
            self._series[metric.name] = series
        return series
