"""Everything that one run saw, and what of it is published: plain values, times from its start."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from load_tests.chaos.changes import Changed
from load_tests.chaos.killer import Strike
from load_tests.chaos.outcomes import BAD, Outcome, Turn, by_phase, longest_gap
from load_tests.chaos.watch import Sample, Watch, gone_at

_WORST: Final = 40
# A loss that nobody saw the end of is looked at for so long.
_UNHEALED_S: Final = 60.0


@dataclass(slots=True)
class Record:
    """A run in the making; times are of the client's clock.

    recoveries_s: (times the capacity, seconds until first audio was as at full load again; None if
        that was not seen), one entry per overload.
    """

    began_s: float
    turns: list[Turn] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)
    recoveries_s: list[tuple[float, float | None]] = field(default_factory=list)
    full_p95_s: float | None = None
    watch: Watch | None = None

    def outcomes(self) -> Iterator[Outcome]:
        for turn in self.turns:
            yield from turn.outcomes

    @property
    def is_bad(self) -> bool:
        """Whether a stream was lost, broken or unequal, none was made at all, a planned change did
        not come about, or a kernel was compiled while somebody waited.
        """
        fates = [outcome.fate for outcome in self.outcomes()]
        if any(made.done_s is None for made in self.changes):
            return True
        if self.watch is not None and self.watch.late_kernels:
            return True
        return any(fate in BAD for fate in fates) or "complete" not in fates


def result_of(record: Record) -> dict[str, Any]:
    """The run as JSON has it."""
    outcomes = list(record.outcomes())
    worst = [outcome for outcome in outcomes if outcome.fate in BAD]
    watch = record.watch
    return {
        "full_p95_s": record.full_p95_s,
        "phases": [asdict(figures) for figures in by_phase(record.turns)],
        "compared": sum(outcome.comparison is not None for outcome in outcomes),
        "bad": len(worst),
        "late_kernels": watch.late_kernels if watch else 0,
        "worst": [_told(outcome, record) for outcome in worst[:_WORST]],
        "strikes": [_struck(strike, outcomes, record) for strike in record.strikes],
        "changes": [
            {"change": made.change, "at_s": made.at_s - record.began_s, "done_s": made.done_s}
            for made in record.changes
        ],
        "recoveries": [
            {"factor": factor, "seconds": seconds} for factor, seconds in record.recoveries_s
        ],
        "turns": [
            {
                "phase": turn.phase,
                "begin_s": turn.begin_s - record.began_s,
                "end_s": turn.end_s - record.began_s,
                "requests": len(turn.outcomes),
            }
            for turn in record.turns
        ],
        "states": _states(record),
        "usage": usage_by_kind(watch.samples, record.began_s) if watch else {},
        "growth": [asdict(entry) for entry in growth(watch.samples)] if watch else [],
    }


def _told(outcome: Outcome, record: Record) -> dict[str, Any]:
    result, comparison = outcome.result, outcome.comparison
    end_s = result.sent_at_s + result.end_s
    before = [strike for strike in record.strikes if strike.at_s <= end_s]
    last = before[-1] if before else None
    return {
        "phase": outcome.phase,
        "request": outcome.number,
        "fate": outcome.fate,
        "sent_s": result.sent_at_s - record.began_s,
        "end_s": end_s - record.began_s,
        "status": result.status,
        "error": result.error,
        "detail": result.detail,
        "samples": result.samples,
        "expected_samples": result.expected_samples,
        "comparison": comparison and asdict(comparison),
        "frame": None
        if comparison is None or comparison.first_wrong is None
        else comparison.first_wrong // result.shape.samples_per_frame,
        "last_strike": last
        and {
            "kind": last.blow.kind,
            "signal": last.blow.label,
            "before_end_s": end_s - last.at_s,
        },
    }


def _struck(strike: Strike, outcomes: Sequence[Outcome], record: Record) -> dict[str, Any]:
    readings = record.watch.readings if record.watch else []
    gone_s = gone_at(readings, strike.at_s, strike.pid)
    end_s = strike.at_s + (_UNHEALED_S if strike.healed_s is None else strike.healed_s)
    gap = longest_gap(outcomes, strike.at_s, end_s)
    hit = [
        outcome
        for outcome in outcomes
        if outcome.result.sent_at_s <= strike.at_s
        and outcome.result.sent_at_s + outcome.result.end_s >= strike.at_s
    ]
    return {
        "at_s": strike.at_s - record.began_s,
        "kind": strike.blow.kind,
        "signal": strike.blow.label,
        "pid": strike.pid,
        "of": strike.before,
        "healed_s": strike.healed_s,
        "gone_s": None if gone_s is None else gone_s - strike.at_s,
        "open": len(hit),
        "open_bad": sum(outcome.fate in BAD for outcome in hit),
        "longest_gap_s": gap.length_s if gap else None,
        "gap_phase": gap.phase if gap else None,
    }


def _states(record: Record) -> list[dict[str, Any]]:
    """What `/health` said, one entry per change."""
    found: list[dict[str, Any]] = []
    for reading in record.watch.readings if record.watch else ():
        if not found or found[-1]["state"] != reading.state:
            found.append({"at_s": reading.at_s - record.began_s, "state": reading.state})
    return found


def usage_by_kind(samples: Sequence[Sample], began_s: float) -> dict[str, dict[str, list[float]]]:
    """Series per kind: times, processes, and the mean of what one of them takes."""
    found: dict[str, dict[str, list[float]]] = {}
    looks: dict[tuple[str, float], list[Sample]] = {}
    for sample in samples:
        looks.setdefault((sample.kind, sample.at_s), []).append(sample)
    for (kind, at_s), group in looks.items():
        series = found.setdefault(
            kind, {"at_s": [], "processes": [], "rss_mib": [], "descriptors": [], "threads": []}
        )
        series["at_s"].append(at_s - began_s)
        series["processes"].append(len(group))
        for name in ("rss_mib", "descriptors", "threads"):
            series[name].append(sum(getattr(s, name) for s in group) / len(group))
    return found


@dataclass(frozen=True, slots=True)
class Growth:
    """Medians over the first and the last third of the looks at one kind, per process."""

    kind: str
    name: str
    before: float
    after: float


def growth(samples: Sequence[Sample]) -> list[Growth]:
    """What has become more or less; nothing where there were too few looks."""
    found: list[Growth] = []
    for kind, series in usage_by_kind(samples, 0.0).items():
        third = len(series["at_s"]) // 3
        if not third:
            continue
        found += [
            Growth(kind, name, median(series[name][:third]), median(series[name][-third:]))
            for name in ("processes", "rss_mib", "descriptors", "threads")
        ]
    return found
