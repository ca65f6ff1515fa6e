"""What the start of each replica took, and what requests saw while replicas were added: markdown.

A replica says of its constructor how long each part took. What is left of the time from asking for
it until it runs is Ray's and Serve's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from load_tests.reports.report import ms, number, table_head, table_line
from load_tests.servers.starts import ReplicaStart

# The columns, and what a replica calls the parts of each. `standby`: it took a process that had
# done its imports, or was about to end them; `process`: it began one, which imports first.
_GROUPS: Final = {
    "process": ("replica", "standby", "process"),
    "imports": ("imports",),
    "kernels": ("kernels",),
    "weights": ("code predictor", "decoder weights", "talker configuration", "talker weights"),
    "graphs": (
        *("decoder graphs", "decoder first calls", "first audio graphs"),
        *("frame graphs", "talker graphs"),
    ),
    "cuDNN trials": ("decoder trials",),
    "rehearsal": ("rehearsal",),
}
_OTHER: Final = "other"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Started:
    """One replica; ready_s: from asking for it, or from the loss of the one it replaces."""

    placement: str
    why: str
    deployment: str
    ready_s: float | None
    parts: Mapping[str, float]


def as_json(starts: Sequence[ReplicaStart]) -> list[dict[str, Any]]:
    """In the order in which they were said."""
    ordered = sorted(starts, key=lambda start: start.said_at)
    return [{"deployment": start.deployment, "parts": start.parts} for start in ordered]


def grouped(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds by column; what no column is named for is `other`."""
    column = {part: name for name, of_it in _GROUPS.items() for part in of_it}
    found = dict.fromkeys([*_GROUPS, _OTHER], 0.0)
    for part, seconds in parts.items():
        found[column.get(part, _OTHER)] += seconds
    return found


def table(stored: Mapping[str, Any]) -> list[str]:
    """All starts that `stored` has, with what was heard meanwhile; nothing where there is none."""
    starts = list(_all(stored))
    if not starts:
        return []
    head = ("placement", "for", "replica", "ready after s", "Ray and Serve", *_GROUPS, _OTHER)
    lines = ["## Starts of replicas", "", *table_head(head, left=3)]
    for start in starts:
        groups = grouped(start.parts)
        before_s = None if start.ready_s is None else start.ready_s - sum(start.parts.values())
        kind = "".join(f" ({name})" for name in ("standby", "process") if name in start.parts)
        seconds = [start.ready_s, before_s, *groups.values()]
        lines.append(
            table_line(
                [
                    start.placement,
                    start.why,
                    start.deployment + kind,
                    *(number(value, 1) for value in seconds),
                ]
            )
        )
    lines.append("")
    for row in stored["rows"]:
        if until := row.get("until_ready"):
            lines.append(
                f"- {row['placement']}, {row['load']}: first audio p50 / p95 of the"
                f" {until['requests']} requests sent until the last one was ready"
                f" {ms(until['first_p50_s'], 0)} / {ms(until['first_p95_s'], 0)} ms,"
                f" {until['failures']} failed; of all {row['requests']}"
                f" {ms(row['first_p50_s'], 0)} / {ms(row['first_p95_s'], 0)} ms"
            )
    return [*lines, ""]


def _all(stored: Mapping[str, Any]) -> Iterator[Started]:
    for first in stored.get("starts", ()):
        for start in first["replicas"]:
            deployment, parts = start["deployment"], start["parts"]
            yield Started(first["placement"], "the server's start", deployment, None, parts)
    for row in stored["rows"]:
        # The k-th to have said that it has started is the k-th that was seen to run.
        ready = {name: list(seconds) for name, seconds in row.get("ready_s", {}).items()}
        why = row["load"] if ready else f"{row['load']}, {row['gpus']} GPUs"
        for start in row.get("starts", ()):
            left = ready.get(start["deployment"])
            ready_s = left.pop(0) if left else None
            yield Started(row["placement"], why, start["deployment"], ready_s, start["parts"])
