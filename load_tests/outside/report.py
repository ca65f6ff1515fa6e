"""Reports of outside clients, composed from what they left."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.outside.locust_run import COLUMNS
from load_tests.reports import files, plots
from load_tests.reports.report import table_head, table_line

_TIMES: Final = {
    "first_byte_ms": "first byte",
    "first_playable_ms": "first playable",
    "first_audible_ms": "first audible",
    "end_to_end_ms": "end to end",
    "lag_ms": "client lag",
}


def compared(folder: Path, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Both clients beside each other at each rate: `folder`/report.md."""
    parts = [_head("An outside client", facts)]
    for result in results:
        load, clients = result["load"], result["clients"]
        parts.append(
            f"## {load['rate_hz']:g} requests/s, {load['duration_s']:g} s after"
            f" {load['warm_up_s']:g} s\n\n" + "\n".join(_clients(clients))
        )
    text = "\n\n".join(parts) + "\n"
    files.write_text(folder / "report.md", text)
    files.write_json(folder / "outside.json", {"facts": facts, "results": list(results)})
    return text


def _clients(clients: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = list(clients)
    lines = [*table_head(("p50 / p95 / p99, ms", *names))]
    for key, title in _TIMES.items():
        cells = [" / ".join(_ms(value) for value in clients[name][key]) for name in names]
        lines.append(table_line([title, *cells]))
    for key in ("requests", "complete", "stalled", "underruns"):
        lines.append(table_line([key, *(str(clients[name][key]) for name in names)]))
    return lines


def locust(
    folder: Path,
    facts: Mapping[str, Any],
    outcome: Mapping[str, Any],
    history: Mapping[str, Any],
) -> str:
    """What Locust says: `folder`/report.md and load.png."""
    drawn = False
    if history["at_s"]:
        at_s = [float(second) for second in history["at_s"]]
        panels = {
            "listeners": {"users": (at_s, history["users"])},
            "per s": {
                "streams": (at_s, history["streams_per_s"]),
                "failures": (at_s, history["failures_per_s"]),
            },
            "first playable, ms": {"p95": (at_s, history["first_playable_p95_ms"])},
        }
        drawn = plots.steps(folder / "load.png", panels)
    lines = [*table_head(("row", "requests", "failures", "per s", *COLUMNS))]
    for row in outcome["rows"]:
        counts = [str(row["requests"]), str(row["failures"]), f"{row['per_s']:.2f}"]
        times = [_ms(row[column]) for column in COLUMNS]
        lines.append(table_line([row["name"], *counts, *times]))
    title = f"Locust: {facts['shape']}, {facts['users']} listeners, {facts['minutes']:g} minutes"
    text = "\n\n".join(
        [
            _head(title, facts),
            "Times in ms by Locust's clock; `dry` is what a player would have waited for, a failure"
            " above 50 ms.",
            "\n".join(lines),
            *_faults(outcome["faults"]),
            *(["![load](load.png)"] if drawn else []),
        ]
    )
    files.write_text(folder / "report.md", text + "\n")
    return text


def _faults(faults: Sequence[Mapping[str, Any]]) -> list[str]:
    if not faults:
        return []
    lines = [*table_head(("times", "what went wrong"))]
    lines += [table_line([str(fault["times"]), fault["what"]]) for fault in faults]
    return ["\n".join(lines)]


def _head(title: str, facts: Mapping[str, Any]) -> str:
    names = [gpu["name"] for gpu in facts["gpus"]]
    machine = ", ".join(names) if names else f"{facts['cpus']} CPUs, no GPU"
    return f"# {title}\n\n{machine}; commit {facts['commit']}\n\n`{facts['command']}`"


def _ms(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1f}"
