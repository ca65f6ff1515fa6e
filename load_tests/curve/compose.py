"""The report of a curve: what was measured at each number of GPUs, beside one GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.curve import added, filling, summary, tables
from load_tests.curve.figures import withheld
from load_tests.reports import files, plots
from load_tests.reports.report import number, table_head, table_line
from load_tests.servers.late_kernels import late_text

_HEAD: Final = (
    *("placement", "GPUs", "load", "plan", "requests", "failed", "first p50 / p95 ms"),
    *("audio-s/s", "dry > 50 ms", "client lag ms"),
)


def compose(folder: Path, stored: Mapping[str, Any]) -> None:
    rows: Sequence[Mapping[str, Any]] = stored["rows"]
    facts = stored["facts"]
    parts = [
        "# The curve",
        "",
        *(f"    {command}" for command in stored.get("commands", ())),
        "",
        f"{_names(facts)}; {facts['cpus']} cores; commit {facts['commit']}; {facts['time_utc']}",
        "",
        *tables.circumstances(facts),
        *(
            f"- {start['placement']}: ready after {start['ready_s']:.1f} s,"
            f" {start['ingresses']} ingresses"
            for start in stored.get("starts", ())
        ),
        *_late(rows, facts),
        "",
        *summary.report(rows),
        *added.table(stored),
        *filling.report(rows, facts["cpus"]),
        "## Every load",
        "",
        *table_head(_HEAD, left=4),
        *(_line(row) for row in rows),
        "",
        *_more(rows),
        "",
        *tables.accounts(rows),
    ]
    files.write_text(folder / "report.md", "\n".join(parts) + "\n")
    plots.curve(
        folder / "curve.png",
        rows,
        least_share=summary.LEAST_SHARE,
        most_p95=summary.MOST_P95,
        notes=_withheld(rows),
    )


def _withheld(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, int], str]:
    """For the plot, of the loads that the host took more from than the server can be judged by."""
    return {
        (row["placement"], row["load"], row["gpus"]): f"{100 * cores[0] / cores[1]:.0f} % stolen"
        for row in rows
        if (cores := withheld(row)) is not None and cores[0] > summary.MOST_STOLEN * cores[1]
    }


def _late(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[str]:
    """What was compiled after ready; nothing where no row tells: earlier runs, and no GPU."""
    told = [row for row in rows if "late_kernels" in row]
    if not told or not facts["gpus"]:
        return []
    late = [
        f"- {row['placement']}, {row['gpus']} GPUs, {row['load']}: {late_text(row['late_kernels'])}"
        for row in told
        if row["late_kernels"]
    ]
    return late or [f"- {late_text([])}"]


def _more(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines on what the tables have no column for."""
    lines = []
    for row in rows:
        where = f"{row['placement']}, {row['gpus']} GPUs, {row['load']}"
        if row["failures"]:
            lines.append(f"- {where}: {row['failures_by_kind']}, first: {row['first_detail']}")
        if sets := row.get("sets"):
            each = "; ".join(f"{node}: {', '.join(kinds)}" for node, kinds in sets.items())
            lines.append(f"- {where}: processes of the stages by node: {each}")
    return lines


def _line(row: Mapping[str, Any]) -> str:
    return table_line(
        [
            row["placement"],
            str(row["gpus"]),
            row["load"],
            row["plan"] + (" (cut short)" if row["stopped"] else ""),
            str(row["requests"]),
            str(row["failures"]),
            f"{_ms(row['first_p50_s'])} / {_ms(row['first_p95_s'])}",
            number(row["audio_s_per_s"], 1),
            str(row["dry_over_50_ms"]),
            _ms(row["client_lag_p99_s"]),
        ]
    )


def _names(facts: Mapping[str, Any]) -> str:
    names = [gpu["name"] for gpu in facts["gpus"]]
    return f"{len(names)} x {names[0]}" if names else "no GPU"


def _ms(seconds: float | None) -> str:
    return "failed" if seconds is None else f"{1000 * seconds:.1f}"
