"""What became of each request, and the figures of a phase."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from statistics import fmean
from typing import Final, Literal

from load_tests.chaos.compare import Comparison
from load_tests.loops.client import RequestResult
from load_tests.loops.metrics import CONTINUITY_S, percentile, play

# complete: all samples came, and they are the right ones as far as that is known.
# refused: the server said that it has no room (429).
# left: the client itself hung up.
# lost: no audio came, for any other reason.
# broken: audio came and stopped short, or too much of it.
# unequal: other samples than undisturbed, whether complete, left or broken.
Fate = Literal["complete", "refused", "left", "lost", "broken", "unequal"]
FATES: Final[tuple[Fate, ...]] = ("complete", "refused", "left", "lost", "broken", "unequal")
BAD: Final[tuple[Fate, ...]] = ("lost", "broken", "unequal")
_TOO_MANY: Final = 429


@dataclass(slots=True)
class Outcome:
    """One request of a phase.

    body: kept until it has been compared.
    comparison: with the undisturbed stream; None where there was nothing to compare.
    self_paced: the client took the audio when it liked: it fell silent by its own doing.
    """

    phase: str
    number: int
    result: RequestResult
    comparison: Comparison | None = None
    body: bytes = b""
    self_paced: bool = False

    @property
    def fate(self) -> Fate:
        result = self.result
        if self.comparison is not None and not self.comparison.is_equal:
            return "unequal"
        if result.ok:
            return "complete"
        if result.error == "left":
            return "left"
        if result.status == _TOO_MANY:
            return "refused"
        return "broken" if result.samples else "lost"

    @property
    def longest_gap_s(self) -> float:
        """Within the stream, and of a broken one up to its end."""
        return max((gap.length_s for gap in gaps_of(self)[1:]), default=0.0)

    @property
    def is_dry(self) -> bool:
        """Whether an ordinary player would have fallen silent."""
        result = self.result
        return not self.self_paced and play(result.arrivals, result.shape).underrun_s > CONTINUITY_S


@dataclass(frozen=True, slots=True)
class Refusals:
    """Answers with 429; times in seconds from sending."""

    count: int
    p50_s: float
    p95_s: float
    without_retry_after: int
    retry_after_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """All requests of one load, in however many turns it ran; seconds, nan where there is none.

    The percentiles are of complete requests: what was refused never had a first audio. What the
    client saw is true to `client_lag_p99_s`, by which its own sleeps ended late. `load_average` is
    the machine's, in the mean over the ends of turns. Of the streams that were compared `exact` are
    equal bit for bit, `rounded` but for rounding; the others have the fate `unequal`.
    """

    phase: str
    requests: int
    fates: dict[str, int]
    dry: int
    exact: int
    rounded: int
    first_audio_p50_s: float
    first_audio_p95_s: float
    longest_gap_s: float
    span_s: float
    complete_per_s: float
    refusals: Refusals
    client_lag_p99_s: float = math.nan
    load_average: float = math.nan


def refusals_of(outcomes: Iterable[Outcome]) -> Refusals:
    results = [outcome.result for outcome in outcomes if outcome.fate == "refused"]
    ends = [result.end_s for result in results]
    given = {result.retry_after_s for result in results if result.retry_after_s is not None}
    return Refusals(
        count=len(results),
        p50_s=percentile(ends, 0.5),
        p95_s=percentile(ends, 0.95),
        without_retry_after=sum(result.retry_after_s is None for result in results),
        retry_after_s=tuple(sorted(given)),
    )


def figures_of(phase: str, outcomes: Sequence[Outcome], span_s: float) -> PhaseFigures:
    """Reduce a phase that took `span_s` seconds in all."""
    fates: dict[str, int] = {fate: 0 for fate in FATES}
    for outcome in outcomes:
        fates[outcome.fate] += 1
    complete = [outcome for outcome in outcomes if outcome.fate == "complete"]
    compared = [outcome.comparison for outcome in outcomes if outcome.comparison is not None]
    equal = [comparison for comparison in compared if comparison.is_equal]
    firsts = [
        math.inf if outcome.result.first_playable_s is None else outcome.result.first_playable_s
        for outcome in complete
    ]
    return PhaseFigures(
        phase=phase,
        requests=len(outcomes),
        fates=fates,
        dry=sum(outcome.is_dry for outcome in complete),
        exact=sum(not comparison.rounded for comparison in equal),
        rounded=sum(bool(comparison.rounded) for comparison in equal),
        first_audio_p50_s=percentile(firsts, 0.5),
        first_audio_p95_s=percentile(firsts, 0.95),
        longest_gap_s=max((outcome.longest_gap_s for outcome in outcomes), default=0.0),
        span_s=span_s,
        complete_per_s=len(complete) / span_s if span_s > 0 else math.nan,
        refusals=refusals_of(outcomes),
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """Silence between two pieces of one stream; times are of the client's clock."""

    phase: str
    number: int
    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.begin_s


def gaps_of(outcome: Outcome) -> list[Gap]:
    """The waits within the stream, and the one before its first piece or its end.

    A client that rests waits from the end of its rest on.
    """
    result = outcome.result
    ends = [at_s for at_s, _ in result.arrivals]
    begins = [0.0, *map(sum, zip_longest(ends, result.rests_s, fillvalue=0.0))]
    if not result.ok:
        ends.append(result.end_s)
    return [
        Gap(outcome.phase, outcome.number, result.sent_at_s + begin, result.sent_at_s + end)
        for begin, end in zip(begins, ends, strict=False)
    ]


def longest_gap(outcomes: Iterable[Outcome], begin_s: float, end_s: float) -> Gap | None:
    """The longest gap any part of which lies in a span of time; None if nobody was listening."""
    found = (
        gap
        for outcome in outcomes
        for gap in gaps_of(outcome)
        if gap.begin_s <= end_s and gap.end_s >= begin_s
    )
    return max(found, key=lambda gap: gap.length_s, default=None)


@dataclass(slots=True)
class Turn:
    """One run of one load.

    lags_s: how late the client's own sleeps ended.
    load_average: of the machine, when it had ended.
    recovered_s: of an overload, from its last arrival until a first audio was as at full load; None
        if that was not seen.
    """

    phase: str
    begin_s: float
    end_s: float = math.nan
    outcomes: list[Outcome] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    load_average: float = math.nan
    recovered_s: float | None = None

    @property
    def span_s(self) -> float:
        return self.end_s - self.begin_s


def by_phase(turns: Iterable[Turn]) -> list[PhaseFigures]:
    """Turns of one load taken together, in the order in which loads first appear."""
    groups: dict[str, list[Turn]] = {}
    for turn in turns:
        groups.setdefault(turn.phase, []).append(turn)
    return [
        replace(
            figures_of(
                phase,
                [outcome for turn in group for outcome in turn.outcomes],
                sum(turn.span_s for turn in group),
            ),
            client_lag_p99_s=percentile([lag for turn in group for lag in turn.lags_s], 0.99),
            load_average=fmean(turn.load_average for turn in group),
        )
        for phase, group in groups.items()
    ]
