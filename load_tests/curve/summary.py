"""A curve in one table per placement, as `docs/performance.md` has it, and what was aimed at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from load_tests.curve.figures import BACK, efficiency, withheld
from load_tests.curve.filling import gpus_text
from load_tests.reports.report import table_head, table_line

# Of one GPU's throughput, and by its p95 of first audio.
LEAST_SHARE: Final = 0.95
MOST_P95: Final = 1.2
# Of the cores that a machine wanted, for its figures to be the server's.
MOST_STOLEN: Final = 0.05
# Where a quarter of a window makes less of the best one's throughput, or has more of the best
# one's p95, something happened in it.
_EVEN_SHARE: Final = 0.85
_EVEN_P95: Final = 2.0
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
        head += [f"{gpus_text(gpus)}: first audio p50 / p95, ms", "audio-s/s"]
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
    lines += ["", *_stolen(loads), *_uneven(loads), *_begin(loads)]
    requests = sum(row["requests"] for row in rows)
    failures = sum(row["failures"] for row in rows)
    lines += [f"- {_aimed(f'{failures:,} of {requests:,} requests failed', not failures)}"]
    dry = [row for row in loads if row["dry_over_50_ms"]]
    each = ", ".join(
        f"{row['dry_over_50_ms']} of {row['requests']:,} ({row['load']}, {gpus_text(row['gpus'])})"
        for row in dry
    )
    lines.append(f"- dry for more than 50 ms: {_aimed(each or 'none', not dry)}")
    lines += [_loss(row) for row in rows if "victim" in row]
    return [*lines, ""]


def _stolen(rows: Sequence[Row]) -> list[str]:
    """Of each closed load, cores that the host withheld, beside what the machine wanted."""
    lines: list[str] = []
    for load, of_it in _closed(rows).items():
        shares = {row["gpus"]: cores for row in of_it if (cores := withheld(row)) is not None}
        if any(stolen > MOST_STOLEN * wanted for stolen, wanted in shares.values()):
            each = ", ".join(
                _aimed(
                    f"{stolen:.1f} of {wanted:.1f} ({100 * stolen / wanted:.0f} %)",
                    stolen <= MOST_STOLEN * wanted,
                )
                + f" with {gpus_text(gpus)}"
                for gpus, (stolen, wanted) in shares.items()
            )
            lines.append(f"  - {load}: {each}")
    if not lines:
        return []
    head = (
        "- cores that the host withheld (stolen), of those that were wanted; what a row lost to"
        " that is the host's:"
    )
    return [head, *lines]


def _uneven(rows: Sequence[Row]) -> list[str]:
    """Closed loads whose figures are those of a few moments: the one of one GPU spoils all."""
    lines: list[str] = []
    for load, of_it in _closed(rows).items():
        for row in of_it:
            beside = row.get("beside") or {}
            made = beside.get("parts_audio_s_per_s") or []
            p95_ms = beside.get("parts_first_p95_ms") or []
            said = []
            if made and min(made) < _EVEN_SHARE * max(made):
                said.append(f"{_quarters(made)} audio-s/s")
            known = [each for each in p95_ms if each is not None]
            if known and max(known) > _EVEN_P95 * min(known):
                said.append(f"first audio p95 {_quarters(p95_ms)} ms")
            if said:
                lines.append(f"  - {load}, {gpus_text(row['gpus'])}: {'; '.join(said)}")
    if not lines:
        return []
    return ["- not the same throughout, by quarters of the window:", *lines]


def _quarters(values: Sequence[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:,.0f}" for value in values)


def _begin(rows: Sequence[Row]) -> list[str]:
    """The bursts that closed loops begin with, which the table leaves out."""
    each = [
        f"{load}, " + ", ".join(f"{_ms(p95_s):,.0f} with {gpus_text(gpus)}" for gpus, p95_s in seen)
        for load, of_it in _closed(rows).items()
        if (
            seen := [
                (row["gpus"], row["begin_first_p95_s"])
                for row in of_it
                if row.get("begin_first_p95_s") is not None
            ]
        )
    ]
    if not each:
        return []
    said = "; ".join(each)
    return [
        "- first audio p95 of the burst that a loop begins with, which is not in the table, ms:"
        f" {said}"
    ]


def _closed(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By load, in the order of GPUs."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["gpus"]):
        if row["load"].startswith("closed"):
            found.setdefault(row["load"], []).append(row)
    order = dict.fromkeys(row["load"] for row in rows)
    return {load: found[load] for load in order if load in found}


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
    refused = ""
    if row.get("refusals"):
        wait_s = row["wait_p95_s"]
        later = "" if wait_s is None else f", p95 {wait_s:.1f} s later"
        refused = (
            f", {row['asked_again']:,} of them let in after they were refused and asked again"
            f" ({row['refusals']:,} refusals{later};"
            f" {row['given_up']:,} more still asked at the end)"
        )
    return (
        f"- loss of one of {row['gpus']} under {row['plan']} ({row['victim']}"
        f"{'' if row['hit'] else ', which was not there'}): {_aimed(lost, not row['failures'])}"
        f"{refused};"
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
    # None is known of a load that was over before the client first looked at its clock.
    lags_s = [row["client_lag_p99_s"] for row in others]
    late_s = max((s for s in lags_s if s is not None and not math.isnan(s)), default=None)
    times = (empty["audio_s_per_s"] or 0.0) / most if most else 0.0
    return [
        f"An empty server carried {empty['audio_s_per_s']:,.0f} audio-s/s to the same clients"
        f" ({empty['plan']}), {times:.0f} times the most of a real one; their own lag was"
        f" {'-' if late_s is None else _ms(late_s)} ms at most (p99 of a load).",
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
