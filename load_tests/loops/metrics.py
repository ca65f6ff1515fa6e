"""From results to figures; README.md defines each of them. Pure functions.

A failed request counts as infinitely late in every percentile, so a server cannot gain by failing
what it is slow at.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from load_tests.loops.client import AudioShape, RequestResult
from load_tests.loops.runner import Run

QUANTILES: Final = (0.5, 0.95, 0.99)
# Rounding of clocks, not an interruption.
_STALL_TOLERANCE_S: Final = 0.001
# What the output buffer of an ordinary player hides.
CONTINUITY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Playback:
    """What a listener would have heard.

    underrun_s: silence inserted in all. Also the worst deficit of a player that never waits, and
        the head start that would have avoided every stall.
    longest_stall_s: the longest single interruption.
    """

    underrun_s: float
    longest_stall_s: float
    num_stalls: int


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Nearest-rank percentiles and the mean; infinite where failed requests reach."""

    p50: float
    p95: float
    p99: float
    mean: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run; times in seconds.

    server_s: as of `RequestResult`, by name.
    """

    requests: int
    failures: int
    failures_by_kind: dict[str, int]
    first_detail: str
    first_playable_s: Quantiles
    first_byte_s: Quantiles
    first_audible_s: Quantiles
    leading_silence_s: Quantiles
    end_to_end_s: Quantiles
    rtf: Quantiles
    longest_gap_s: Quantiles
    underrun_s: Quantiles
    underruns: int
    underruns_over_50_ms: int
    audio_s: float
    span_s: float
    audio_s_per_s: float
    window_s: float
    audio_s_per_s_window: float | None
    requests_per_s: float
    max_in_flight: int
    lag_s: Quantiles
    clock_error_s: Quantiles
    stopped: str
    server_s: dict[str, Quantiles]


def percentile(values: Iterable[float], quantile: float) -> float:
    """The smallest value that at least `quantile` of all values do not exceed; nan of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    # Rounded: 0.95 * 20 is a little more than 19 in binary.
    return ordered[max(0, math.ceil(round(quantile * len(ordered), 9)) - 1)]


def quantiles(values: Sequence[float]) -> Quantiles:
    mean = sum(values) / len(values) if values else math.nan
    p50, p95, p99 = (percentile(values, quantile) for quantile in QUANTILES)
    return Quantiles(p50, p95, p99, mean)


def play(arrivals: Sequence[tuple[float, int]], shape: AudioShape) -> Playback:
    """Play a stream that starts at its first whole codec frame and waits whenever it runs dry.

    `arrivals` are (seconds, bytes received by then), as in RequestResult.
    """
    rate = shape.sample_rate_hz
    dry_at_s: float | None = None
    played = 0
    stalls: list[float] = []
    for at_s, total in arrivals:
        samples = max(0, total - shape.header_bytes) // 2
        if dry_at_s is None:
            if total < shape.first_playable_bytes:
                continue
            dry_at_s = at_s
        elif at_s - dry_at_s > _STALL_TOLERANCE_S:
            stalls.append(at_s - dry_at_s)
            dry_at_s = at_s
        dry_at_s += (samples - played) / rate
        played = samples
    return Playback(sum(stalls), max(stalls, default=0.0), len(stalls))


def summarize(run: Run) -> Summary:
    """Reduce a run to its figures."""
    results = run.results
    good = [result for result in results if result.ok]
    playbacks = [play(result.arrivals, result.shape) for result in good]
    started, ended = run.span
    audio_s = sum(result.audio_s for result in good)
    failed = Counter(result.error for result in results if not result.ok)
    window_s = max(0.0, run.window[1] - run.window[0])
    return Summary(
        requests=len(results),
        failures=len(results) - len(good),
        failures_by_kind=dict(failed),
        first_detail=next((result.detail for result in results if not result.ok), ""),
        first_playable_s=quantiles(first_audio(results)),
        first_byte_s=_times([r.first_byte_s if r.ok else None for r in results]),
        first_audible_s=_times([r.first_audible_s if r.ok else None for r in results]),
        leading_silence_s=_times([r.leading_silence_s if r.ok else None for r in results]),
        end_to_end_s=_times([r.end_s if r.ok else None for r in results]),
        rtf=_times([r.end_s / r.audio_s if r.ok else None for r in results]),
        longest_gap_s=_times([max(r.gaps_s, default=0.0) if r.ok else None for r in results]),
        underrun_s=quantiles([playback.underrun_s for playback in playbacks]),
        underruns=sum(playback.underrun_s > 0 for playback in playbacks),
        underruns_over_50_ms=sum(playback.underrun_s > CONTINUITY_S for playback in playbacks),
        audio_s=audio_s,
        span_s=ended - started,
        audio_s_per_s=audio_s / (ended - started) if ended > started else 0.0,
        window_s=window_s,
        audio_s_per_s_window=_window_rate(run) if window_s > 0 else None,
        requests_per_s=len(good) / (ended - started) if ended > started else 0.0,
        max_in_flight=run.max_in_flight,
        lag_s=quantiles([result.lag_s for result in results]),
        clock_error_s=quantiles(run.clock_errors_s),
        stopped=run.stopped,
        server_s={
            name: quantiles([r.server_s[name] for r in good if name in r.server_s])
            for name in dict.fromkeys(name for r in good for name in r.server_s)
        },
    )


def first_audio(results: Iterable[RequestResult]) -> list[float]:
    """Seconds to the first playable audio of each; infinite where it failed."""
    firsts = (result.first_playable_s if result.ok else None for result in results)
    return [math.inf if first_s is None else first_s for first_s in firsts]


def _times(values: Sequence[float | None]) -> Quantiles:
    return quantiles([math.inf if value is None else value for value in values])


def _window_rate(run: Run) -> float:
    """Seconds of audio received per second of the window, by whichever request; failed ones too."""
    begin_s, end_s = run.window
    received_s = sum(
        (result.bytes_before(end_s) - result.bytes_before(begin_s))
        / (2 * result.shape.sample_rate_hz)
        for result in (*run.warm_up, *run.results)
    )
    return received_s / (end_s - begin_s)
