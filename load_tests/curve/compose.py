"""The report of a curve: what was measured per number of GPUs, and the shares of one GPU's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.curve import tables
from load_tests.curve.figures import efficiency
from load_tests.reports import files, plots
from load_tests.reports.report import table_head, table_line

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
        f"`{facts['command']}`",
        "",
        f"{_names(facts)}; {facts['cpus']} cores; commit {facts['commit']}; {facts['time_utc']}",
        "",
        *tables.circumstances(facts),
        *(
            f"- {s['placement']}: ready after {s['ready_s']:.1f} s; {'; '.join(s['replicas'])}"
            for s in stored.get("starts", ())
        ),
        "",
        *table_head(_HEAD, left=4),
        *(_line(row) for row in rows),
    ]
    shares = efficiency(rows)
    if shares:
        parts += [
            "",
            "Against one GPU of the same run; throughput is at each number of GPUs taken from when"
            " all streams had a measured request until the first found none left:",
            "",
            *table_head(("placement", "GPUs", "load", "efficiency", "p95 ratio"), left=3),
            *(
                table_line(
                    [
                        share["placement"],
                        str(share["gpus"]),
                        share["load"],
                        _number(100 * (share["share"] or 0), 1) + " %",
                        _number(share["p95_ratio"], 2),
                    ]
                )
                for share in shares
            ),
        ]
    parts += ["", *_more(rows), "", *tables.accounts(rows)]
    files.write_text(folder / "report.md", "\n".join(parts) + "\n")
    plots.curve(folder / "curve.png", shares)


def _more(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines on what the table has no column for."""
    lines = []
    for row in rows:
        where = f"{row['placement']}, {row['gpus']} GPUs, {row['load']}"
        if ready := row.get("ready_s"):
            said = "; ".join(f"{name} {', '.join(map(str, s))} s" for name, s in ready.items())
            lines.append(f"- {where}: ready after {said}")
            lines += [f"  - {start}" for start in row.get("starts", ())]
        if "victim" in row:
            lines.append(
                f"- {where}: {row['victim']} killed ({row['hit']}), {row['failures']} of"
                f" {row['requests']} requests failed; noticed after {_s(row['noticed_after_s'])},"
                f" replaced after {_s(row['replaced_after_s'])}, throughput back after"
                f" {_s(row['back_after_s'])} (usual {_number(row['usual_audio_s_per_s'], 0)})"
            )
        if row["failures"]:
            lines.append(f"- {where}: {row['failures_by_kind']}, first: {row['first_detail']}")
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
            _number(row["audio_s_per_s"], 1),
            str(row["dry_over_50_ms"]),
            _ms(row["client_lag_p99_s"]),
        ]
    )


def _names(facts: Mapping[str, Any]) -> str:
    names = [gpu["name"] for gpu in facts["gpus"]]
    return f"{len(names)} x {names[0]}" if names else "no GPU"


def _ms(seconds: float | None) -> str:
    return "failed" if seconds is None else f"{1000 * seconds:.1f}"


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
