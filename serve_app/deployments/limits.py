"""What Serve is told of each deployment: how many requests, how many replicas, how long a drain.

All of it follows from the resolved configuration and the longest speech of the checkpoint. A config
file may state something else per deployment; Serve takes what stands there, and replaces
`autoscaling_config` as a whole.
"""

from typing import Any, Final

from serve_app.config import AppConfig, VoiceEncoderConfig

# A request of 5 s costs an ingress 4 ms of its event loop, and 48 streams of such end up to 120
# times a second: half of a fast core, most of a slow one.
STREAMS_PER_INGRESS: Final = 48
# Of those that are there from the beginning: a burst is let in one request after the other, at a
# millisecond each where the processor is slow.
_STREAMS_AT_ONCE: Final = 24
# Connections of one ingress: so many that Serve, whose refusals are plain text, never refuses any.
# What the stages have no place for is refused by the ingress itself, within milliseconds.
_INGRESS_ONGOING: Final = 20_000
# By another name than its own: Serve pickles by value what the module it is told of defines, and
# the class would not be the one that others in the process import.
ROUTER: Final = "serve_app.deployments.calls.ROUTER"
# Sessions of a code predictor: one per talker, which opens another when it is over.
_SESSIONS: Final = 64
# What may be spent; the policy asks for no more of them than the nodes hold (scaling/room.py).
_MAX_REPLICAS: Final = 8
# The longest speech of any release: 8,192 frames of 80 ms.
LONGEST_S: Final = 8192 * 0.08

# A stream is made at least as fast as it is listened to, or its listener would not stay; this is
# for its start, and for what the ingress holds ready for a listener who lags behind.
_DRAIN_SLACK_S: Final = 30.0
_ENCODER_RESTS_S: Final = 900.0
# By how much a stage outlasts the one it serves, so that no stream loses its source first.
_DRAIN_STEP_S: Final = 5.0


def ingresses(streams: int, cpus: float) -> int:
    """Ingresses that let so many streams in at once.

    No more than half of the cores: on a small machine the others would never find room.
    """
    return max(1, min(-(-streams // _STREAMS_AT_ONCE), int(cpus) // 2, _MAX_REPLICAS))


def places_of(config: AppConfig) -> tuple[tuple[str, int], ...]:
    """Streams of one replica, by deployment, of the stages in which each stream has a place; the
    one that the ingress calls comes first.
    """
    talker, decoder = config.talker.max_num_seqs, config.speech_decoder.max_streams
    if config.placement == "fused":
        return (("Fused", min(talker, decoder)),)
    return (("SpeechDecoder", decoder), ("Talker", talker))


def deployment_options(
    config: AppConfig, longest_s: float, cpus: float
) -> dict[str, dict[str, Any]]:
    """Options for `.options()` by the names of the deployments of a placement.

    A stage takes twice as many requests as it has streams, so that it is the admission of ingress
    and talker that lets the next ones wait or refuses them, and not a queue of Serve's that they
    wait in. Replicas come before one is full, since no stream moves for it:
    `scaling.Tuning.up_share` says when, and `target_ongoing_requests` where a config file has no
    policy.

    Args:
        config: resolved.
        longest_s: duration of the longest speech that a request may ask for.
        cpus: cores of the cluster.
    """
    streams = config.talker.max_num_seqs
    stages: list[tuple[str, dict[str, Any]]] = [("Ingress", _ingress(streams, cpus))]
    if config.placement == "fused":
        stages.append(("Fused", _stage(streams)))
    else:
        stages += [
            ("SpeechDecoder", _stage(config.speech_decoder.max_streams)),
            ("Talker", _stage(streams)),
            (
                "CodePredictor",
                {
                    "max_ongoing_requests": _SESSIONS,
                    "request_router_config": _router(_SESSIONS),
                    "autoscaling_config": _scaling(1),
                },
            ),
        ]
    return {
        name: {
            **options,
            "graceful_shutdown_timeout_s": longest_s + _DRAIN_SLACK_S + index * _DRAIN_STEP_S,
        }
        for index, (name, options) in enumerate(stages)
    }


def voice_encoder_options(config: VoiceEncoderConfig) -> dict[str, Any]:
    """Those of the voice encoder: one recording at a time, and a second one at hand."""
    return {
        "max_ongoing_requests": 2,
        "max_queued_requests": config.max_queued,
        "graceful_shutdown_timeout_s": _DRAIN_SLACK_S,
        "autoscaling_config": {
            **_scaling(2),
            "min_replicas": 0,
            "max_replicas": config.max_replicas,
            # Where no policy says when it has rested for long enough.
            "downscale_delay_s": _ENCODER_RESTS_S,
        },
    }


def ingress_options(streams: int, longest_s: float, cpus: float) -> dict[str, Any]:
    """Those of an ingress in an application of its own, before so many streams of its models."""
    return {
        **_ingress(streams, cpus),
        "graceful_shutdown_timeout_s": longest_s + _DRAIN_SLACK_S,
    }


def _ingress(streams: int, cpus: float) -> dict[str, Any]:
    return {
        "max_ongoing_requests": _INGRESS_ONGOING,
        # In an update the next one is there before the last one goes, which waits for its streams.
        "max_surge_percent": 100,
        # Each change of its replicas reloads HAProxy: scaled slowly.
        "autoscaling_config": {
            **_scaling(STREAMS_PER_INGRESS),
            "min_replicas": ingresses(streams, cpus),
            "look_back_period_s": 20,
            "upscale_delay_s": 10,
            "downscale_delay_s": 900,
        },
    }


def _stage(streams: int) -> dict[str, Any]:
    return {
        "max_ongoing_requests": 2 * streams,
        "request_router_config": _router(streams),
        "autoscaling_config": _scaling(max(1, streams * 3 // 4)),
    }


def _router(places: int) -> dict[str, Any]:
    return {"request_router_class": ROUTER, "request_router_kwargs": {"places": places}}


def _scaling(target: int) -> dict[str, Any]:
    return {
        "min_replicas": 1,
        "max_replicas": _MAX_REPLICAS,
        "target_ongoing_requests": target,
        "metrics_interval_s": 1,
        "look_back_period_s": 5,
        # The policy (scaling/policy.py) waits by itself; all stages have the same here, since
        # Serve applies these to each apart.
        "upscale_delay_s": 0,
        "downscale_delay_s": 30,
    }
