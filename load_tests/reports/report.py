"""The markdown tables that levels are published as."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from load_tests.loops.level import Level
from load_tests.loops.metrics import Quantiles


def ms(seconds: float | None, digits: int = 1) -> str:
    return number(None if seconds is None else 1000 * seconds, digits)


def number(value: float | None, digits: int) -> str:
    """A dash for what nobody knows; infinite is what has not come."""
    if value is None or math.isnan(value):
        return "-"
    return "failed" if math.isinf(value) else f"{value:.{digits}f}"


def _cell(figures: Quantiles, scale: float = 1000.0, digits: int = 1) -> str:
    return " / ".join(number(scale * q, digits) for q in (figures.p50, figures.p95, figures.p99))


HEADER: Final = (
    "load",
    "requests",
    "failed",
    "first playable ms",
    "first byte ms",
    "end to end ms",
    "RTF",
    "audio-s/s",
    "in flight",
    "underruns (> 50 ms)",
    "worst gap ms",
    "client lag ms",
)


def row(level: Level) -> list[str]:
    """The cells of one level; triples are p50 / p95 / p99."""
    figures = level.summary
    rate = figures.audio_s_per_s_window
    # An open loop is never late for its own sake: its lag is of sending. A closed one has none.
    lag = figures.clock_error_s if level.loop == "closed" else figures.lag_s
    return [
        level.load + (" (cut short)" if figures.stopped else ""),
        str(figures.requests),
        str(figures.failures),
        _cell(figures.first_playable_s),
        _cell(figures.first_byte_s),
        _cell(figures.end_to_end_s, digits=0),
        _cell(figures.rtf, 1.0, 3),
        number(figures.audio_s_per_s if rate is None else rate, 1),
        str(figures.max_in_flight),
        f"{figures.underruns} ({figures.underruns_over_50_ms})",
        ms(figures.longest_gap_s.p99),
        ms(lag.p99),
    ]


def table(levels: Sequence[Level]) -> str:
    return "\n".join([*table_head(), *(table_line(row(level)) for level in levels)])


def table_head(head: Sequence[str] = HEADER, left: int = 1) -> list[str]:
    """Two lines; `left` columns hold text, the others numbers."""
    return [table_line(head), "|" + "---|" * left + " ---: |" * (len(head) - left)]


def table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def way(levels: Sequence[Level]) -> list[str]:
    """Where first audio spends its time, by the server's account; nothing if it gives none."""
    names = list(dict.fromkeys(name for level in levels for name in level.summary.server_s))
    if not names:
        return []
    # From the inside out as the server tells it; here from the client inwards.
    names.reverse()
    rows = []
    for level in levels:
        seen = level.summary.server_s
        medians = [ms(seen[name].p50) if name in seen else "-" for name in names]
        rows.append(table_line([level.load, ms(level.summary.first_byte_s.p50), *medians]))
    return [
        "Medians of what the first audio took, in ms, at the client and by `Server-Timing`:",
        "",
        *table_head(["load", "client", *names]),
        *rows,
    ]


def notes(levels: Sequence[Level]) -> list[str]:
    """One line for each level that needs a word: failures, early stops, a slow client."""
    lines = []
    for level in levels:
        figures, label = level.summary, level.run.plan.label
        if figures.failures:
            kinds = ", ".join(f"{n} {kind}" for kind, n in figures.failures_by_kind.items())
            lines.append(f"- {label}: {kinds}; the first: {figures.first_detail}")
        if level.bursts_p95_s:
            each = ", ".join(map(ms, level.bursts_p95_s))
            lines.append(f"- {label}: first playable p95 of each burst {each} ms")
        if (beside := level.beside) is not None:
            lines.append(
                f"- {label}: of {beside.requests} requests of the streams beside,"
                f" {beside.failures} failed, {beside.underruns} ran dry"
                f" ({beside.underruns_over_50_ms} for more than 50 ms),"
                f" longest gap {ms(beside.longest_gap_s.p99)} ms (p99)"
            )
        if figures.stopped:
            lines.append(f"- {label}: stopped {figures.stopped}")
        if figures.clock_error_s.p95 > 0.005:
            lines.append(
                f"- {label}: the client's own clock was late by {ms(figures.clock_error_s.p95)} ms"
                " (p95): its delays contain that much of its own"
            )
    return lines


def markdown(levels: Sequence[Level], facts: Mapping[str, Any]) -> str:
    """Circumstances, table and notes of one server."""
    machine = ", ".join(gpu["name"] for gpu in facts["gpus"]) or f"{facts['cpus']} CPUs, no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    health = facts.get("health") or {}
    lines = [
        f"{machine}; {versions}; commit {facts['commit']},"
        f" config {health.get('config_digest', '-')}, placement {health.get('placement', '-')}."
        " Triples are p50 / p95 / p99; a failed request counts as infinitely late.",
        "",
        table(levels),
    ]
    parts = [lines, way(levels), notes(levels)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"
