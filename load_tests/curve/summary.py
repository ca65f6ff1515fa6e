"""A curve in one table per placement, as `docs/performance.md` has it, and what was aimed at."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from load_tests.curve.figures import BACK, efficiency
from load_tests.reports.report import table_head, table_line

# Of one GPU's throughput, and by its p95 of first audio.
LEAST_SHARE: Final = 0.95
MOST_P95: Final = 1.2
_EMPTY: Final = "empty"

Row = Mapping[str, Any]


def report(rows: Sequence[Row]) -> list[str]:
    """Markdown; an aim that is missed is bold."""
    lines: list[str] = []
    for placement in dict.fromkeys(row["placement"] for row in rows if row["placement"] != _EMPTY):
        lines += _of([row for row in rows if row["placement"] == placement], placement)
    return lines + _clients(rows)


def _of(rows: Sequence[Row], placement: str) -> list[str]:
    loads = [row for row in rows if "ready_s" not in row and "victim" not in row]
    counts = sorted({row["gpus"] for row in loads})
    head = ["load, per GPU"]
    for gpus in counts:
        head += [f"{_gpus(gpus)}: first audio p50 / p95, ms", "audio-s/s"]
        head += ["of one GPU's", "p95 by one GPU's"] if gpus > 1 and counts[0] == 1 else []
    lines = [f"## {placement}", "", *table_head(head)]
    shares = {(s["load"], s["gpus"]): s for s in efficiency(rows)}
    for load in dict.fromkeys(_load(row) for row in loads):
        cells = [load]
        for gpus in counts:
            these = [row for row in loads if row["gpus"] == gpus and _load(row) == load]
            cells += [_first(these), _range([row["audio_s_per_s"] for row in these])]
            if gpus > 1 and counts[0] == 1:
                cells += _against(shares.get((load, gpus)))
        lines.append(table_line(cells))
    requests = sum(row["requests"] for row in rows)
    failures = sum(row["failures"] for row in rows)
    lines += ["", f"- {_aimed(f'{failures:,} of {requests:,} requests failed', not failures)}"]
    dry = [row for row in loads if row["dry_over_50_ms"]]
    each = ", ".join(
        f"{row['dry_over_50_ms']} of {row['requests']:,} ({row['load']}, {_gpus(row['gpus'])})"
        for row in dry
    )
    lines.append(f"- dry for more than 50 ms: {_aimed(each or 'none', not dry)}")
    lines += [_loss(row) for row in rows if "victim" in row]
    return [*lines, ""]


def _load(row: Row) -> str:
    """A row's load without the number of a burst, of which there are several."""
    return row["load"].rpartition(", ")[0] if row["load"].startswith("burst") else row["load"]


def _first(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    p50, p95 = (_range([_ms(row[name]) for row in rows]) for name in ("first_p50_s", "first_p95_s"))
    return f"{p50} / {p95}"


def _against(share: Row | None) -> list[str]:
    if share is None:
        return ["", ""]
    made, p95 = share["share"], share["p95_ratio"]
    return [
        "" if made is None else _aimed(f"{100 * made:.1f} %", made >= LEAST_SHARE),
        "-" if p95 is None else _aimed(f"{p95:.2f}", p95 <= MOST_P95),
    ]


def _loss(row: Row) -> str:
    lost = f"{row['failures']:,} of {row['requests']:,} requests failed"
    return (
        f"- loss of one of {row['gpus']} under {row['plan']} ({row['victim']}"
        f"{'' if row['hit'] else ', which was not there'}): {_aimed(lost, not row['failures'])};"
        f" noticed after {_s(row['noticed_after_s'])}, replaced after"
        f" {_s(row['replaced_after_s'])}, throughput back at {100 * BACK:.0f} % after"
        f" {_s(row['back_after_s'])}"
    )


def _clients(rows: Sequence[Row]) -> list[str]:
    """What the clients could have received, beside what they did."""
    empty = next((row for row in rows if row["placement"] == _EMPTY), None)
    others = [row for row in rows if row["placement"] != _EMPTY]
    if empty is None or not others:
        return []
    most = max(row["audio_s_per_s"] or 0.0 for row in others)
    late_s = max((row["client_lag_p99_s"] or 0.0 for row in others), default=0.0)
    times = (empty["audio_s_per_s"] or 0.0) / most if most else 0.0
    return [
        f"An empty server carried {empty['audio_s_per_s']:,.0f} audio-s/s to the same clients"
        f" ({empty['plan']}), {times:.0f} times the most of a real one; their own lag was"
        f" {_ms(late_s)} ms at most (p99 of a load).",
        "",
    ]


def _aimed(text: str, met: bool) -> str:
    return text if met else f"**{text}**"


def _range(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "failed" if values else ""
    said = dict.fromkeys(f"{value:,.0f}" for value in (min(known), max(known)))
    return " to ".join(said) + ("" if len(known) == len(values) else ", failed")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds)


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _gpus(count: int) -> str:
    return "one GPU" if count == 1 else f"{count} GPUs"
