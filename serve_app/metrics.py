"""Every metric: name with unit, help, buckets, labels.

Nothing here knows where metrics go. A deployment, ingress or stage, gives `MetricsRecorder` the
counter and histogram classes of `ray.serve.metrics`; everything else records into `NoRecorder`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter, a histogram where it has buckets, or a gauge.

    Values of `labels` are members of small closed sets (formats, statuses, kinds of error), never
    what a client sent: each makes a series of its own.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_gauge: bool = False


# `model` is the served name.
_FORMAT: Final = ("model", "format", "transport")

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
STREAMS_MOVED: Final = Metric(
    "tts_streams_moved_total",
    "Streams that were told to leave a replica of the deployment `callee`, because it does not"
    " answer (hangs) or is taken out of service (goes).",
    ("callee", "reason"),
)
REPLICAS_LOST: Final = Metric(
    "tts_replicas_lost_total",
    "Replicas of the deployment `callee` that a caller has found dead before Serve told of it; each"
    " caller counts those that it finds.",
    ("callee",),
)
STREAM_SILENCE: Final = Metric(
    "tts_stream_silence_seconds",
    "From the last audio or frames before a loss, or the call, to the first after it.",
    _HOP,
    (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0),
)
REFUSED_AT_INGRESS: Final = Metric(
    "tts_refused_at_ingress_total",
    "Requests that would have waited too long for a place, refused before a stage heard of them.",
    ("model",),
)
REFUSED_BY_STAGES: Final = Metric(
    "tts_refused_by_stages_total",
    "Requests that an ingress let in, and that no replica it asked had room for.",
    ("model",),
)
REFUSED_AT_PROXY: Final = Metric(
    "tts_refused_at_proxy_total",
    "Requests that HAProxy refused by itself, because an ingress had just refused one for all.",
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


AUDIO_SECONDS: Final = Metric(
    "tts_audio_seconds_total", "Seconds of audio that were sent, complete or not.", _FORMAT
)
AUDIO_RTF: Final = Metric(
    "tts_audio_rtf",
    "Real-time factor of complete responses: their duration by that of their audio.",
    _FORMAT,
    (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 3.0),
)
STREAM_UNDERRUN: Final = Metric(
    "tts_stream_underrun_seconds",
    "For how long in all a listener who plays from the first chunk on would have heard nothing; in"
    " the first bucket are those who would have heard it all.",
    ("transport",),
    (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0),
)
ENCODE: Final = Metric(
    "tts_encode_seconds",
    "Time that the encoder of one response took in all.",
    ("format",),
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0),
)
INPUT_CHARACTERS: Final = Metric("tts_input_characters_total", "Characters of accepted texts.")
CODEC_FRAMES: Final = Metric("tts_codec_frames_total", "Codec frames that responses were made of.")
REQUESTS_OPEN: Final = Metric(
    "tts_requests_open", "Requests for speech that this ingress is working on.", is_gauge=True
)
REQUEST_QUEUE: Final = Metric(
    "tts_request_queue_seconds",
    "How long requests with audio waited: at the ingress for room (batches for all of their items),"
    " for a replica to take the call, with the way there and back, and in the talker's queue until"
    " their prefill.",
    ("at",),
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0, 600.0),
)
RETRIED: Final = Metric(
    "tts_requests_retried_total", "Requests that their client says it has made before."
)
STAGE_RUNNING: Final = Metric(
    "tts_requests_running", "Streams that a stage is working on.", ("stage",), is_gauge=True
)
KV_CACHE_USAGE: Final = Metric(
    "tts_kv_cache_usage_ratio", "Part of the talker's key-value cache that is taken.", is_gauge=True
)
KV_PREEMPTIONS: Final = Metric(
    "tts_kv_preemptions_total", "Streams that the talker computed again for want of cache."
)
STAGE_STEPS: Final = Metric(
    "tts_stage_steps_total", "Steps of a stage; frames by steps is its batch size.", ("stage",)
)
STAGE_STEP: Final = Metric(
    "tts_stage_step_seconds",
    "How long the steps of a stage take, from launch to result; a step that was launched while the"
    " one before was under way, from that one's end.",
    ("stage",),
    # At 64 streams talker and decoder take 2 to 10 ms on a large GPU, on two cores a hundred.
    (
        *(0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05),
        *(0.1, 0.2, 0.5, 1.0, 5.0),
    ),
)
PROMPT_TOKENS: Final = Metric(
    "tts_prompt_tokens_total", "Positions of the prompts that the talker has begun with."
)
STAGE_FRAMES: Final = Metric(
    "tts_stage_frames_total", "Codec frames that a stage has made or decoded.", ("stage",)
)
STAGE_WAITING: Final = Metric(
    "tts_requests_waiting", "Streams that wait for a place.", ("stage",), is_gauge=True
)


# What `/metrics` adds by itself.
BUILD_INFO: Final = Metric(
    "tts_build_info", "Always 1; the version that is served.", ("version",), is_gauge=True
)
READY: Final = Metric("tts_ready", "1 where requests can be served, else 0.", is_gauge=True)
REPLICAS: Final = Metric(
    "tts_replicas",
    "Replicas of a deployment: ready, and total with those that start or end.",
    ("application", "deployment", "state"),
    is_gauge=True,
)
VOICES: Final = Metric(
    "tts_voices",
    "Voices of the library by what they were made of, as the ingress last saw it; speakers are the"
    " models' own.",
    ("type",),
    is_gauge=True,
)
MODEL_READY: Final = Metric(
    "tts_model_ready",
    "1 where requests for a model can be served, else 0.",
    ("model",),
    is_gauge=True,
)


def step_counters(bound_s: float) -> tuple[str, str]:
    """Names of the two counters by which a stage tells of its steps of up to `bound_s`, a bound of
    `STAGE_STEP`: how many there were, and how long they took together.
    """
    return f"steps<{bound_s:g}", f"step_s<{bound_s:g}"


class Recorder(Protocol):
    def count(self, metric: Metric, **labels: str) -> None: ...

    def add(self, metric: Metric, amount: float, **labels: str) -> None:
        """Like `count`, by another amount than one."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None: ...

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """The present value of a gauge."""
        ...


class NoRecorder:
    """Forgets everything."""

    def count(self, metric: Metric, **labels: str) -> None:
        del metric, labels

    def add(self, metric: Metric, amount: float, **labels: str) -> None:
        del metric, amount, labels

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        del metric, value, labels

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        del metric, value, labels


class MetricsRecorder:
    """Records through classes like `ray.serve.metrics.Counter`, `Histogram` and `Gauge`.

    A series begins with its first value, so that a process has only those of its own stage.
    """

    def __init__(
        self,
        counter: Callable[..., Any],
        histogram: Callable[..., Any],
        gauge: Callable[..., Any],
    ) -> None:
        self._counter = counter
        self._histogram = histogram
        self._gauge = gauge
        self._series: dict[str, Any] = {}

    def count(self, metric: Metric, **labels: str) -> None:
        self._get(metric).inc(tags=_ascii(labels))

    def add(self, metric: Metric, amount: float, **labels: str) -> None:
        if amount > 0:  # Ray takes no other
            self._get(metric).inc(amount, tags=_ascii(labels))

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._get(metric).set(value, tags=_ascii(labels))

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._get(metric).observe(value, tags=_ascii(labels))

    def _get(self, metric: Metric) -> Any:
        series = self._series.get(metric.name)
        if series is None:
            options: dict[str, Any] = {"description": metric.help, "tag_keys": metric.labels}
            if metric.buckets:
                series = self._histogram(metric.name, boundaries=list(metric.buckets), **options)
            elif metric.is_gauge:
                series = self._gauge(metric.name, **options)
            else:
                series = self._counter(metric.name, **options)
            self._series[metric.name] = series
        return series


def _ascii(labels: dict[str, str]) -> dict[str, str]:
    """Ray takes no other letters; a model may have them in its name."""
    if all(map(str.isascii, labels.values())):
        return labels
    return {name: ascii(value)[1:-1] for name, value in labels.items()}
