"""Values that several tests of the load tests start from."""

from typing import Any

from load_tests.loops.client import AudioShape, RequestResult
from load_tests.reports.frame_table import FrameRow

SHAPE = AudioShape()
FRAME_BYTES = 3840
FRAME_S = 0.08


def at(*arrivals: tuple[float, int]) -> list[tuple[float, int]]:
    """(seconds, frames in all) as arrivals."""
    return [(at_s, frames * FRAME_BYTES) for at_s, frames in arrivals]


def result(**changes: Any) -> RequestResult:
    fields: dict[str, Any] = {
        "index": 0,
        "scheduled_at_s": 100.0,
        "sent_at_s": 100.0,
        "end_s": 1.0,
        "status": 200,
        "arrivals": tuple(at((0.1, 1), (0.5, 25))),
        "shape": SHAPE,
        "expected_samples": 25 * 1920,
        "first_audible_sample": 0,
    }
    return RequestResult(**{**fields, **changes})


def level(loop: str, load: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A level as it stands in JSON: 20 / 30 ms, nothing failed, 100 audio-seconds per second."""
    times = {"p50": 0.02, "p95": 0.03, "p99": 0.04, "mean": 0.02}
    loop_plan: dict[str, Any] = {"streams": load, "requests": 20, "warm_up": 1, "max_s": 300.0}
    if loop == "open":
        loop_plan = {"rate_hz": load, "duration_s": 5.0, "warm_up_s": 2.0, "seed": seed}
    elif loop in ("burst", "cold"):
        loop_plan = {"size": load, "times": 5, "pause_s": 3.0, "cold": loop == "cold"}
    return {
        "loop": loop,
        "label": f"{load:g}",
        "plan": loop_plan,
        "requests": 10,
        "failures": 0,
        "underruns": 0,
        "underruns_over_50_ms": 0,
        "first_playable_s": times,
        "lag_s": times,
        "clock_error_s": times,
        "audio_s_per_s": 90.0,
        "audio_s_per_s_window": 100.0,
        "stopped": "",
        **changes,
    }


def late(p50_s: float | None, p95_s: float | None) -> dict[str, float | None]:
    return {"p50": p50_s, "p95": p95_s, "p99": None, "mean": None}


def frame_row(batch: int, whole_ms: float, decoded_share: float = 1.0) -> FrameRow:
    return FrameRow(
        batch=batch,
        context=400.4,
        context_whole=500.0,
        talker_ms=2.5,
        talker_floor_ms=1.5,
        predictor_ms=2.0,
        predictor_floor_ms=0.5,
        decoder_ms=1.0,
        decoder_floor_ms=0.4,
        first_chunk_ms=3.5,
        first_chunk_floor_ms=0.25,
        host_ms=0.1,
        step_ms=4.6,
        step_floor_ms=2.0,
        whole_ms=whole_ms,
        whole_floor_ms=2.2,
        decoded_share=decoded_share,
        compute_bound=["decoder"],
    )
