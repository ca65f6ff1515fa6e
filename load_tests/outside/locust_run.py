"""Locust against a running server, as a process of its own, and what its files say.

Ray must not be imported beside Locust, whose gevent replaces sockets; and its exit status is part
of the verdict.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load_tests.servers.child import REPOSITORY, free_port, search_path

_OUTCOME: Final = "outcome.json"
_FILES: Final = "load_tests/locustfile.py,load_tests/shapes.py"
# Above the longest stream, or the end of the run would count as failures.
_STOP_S: Final = 120
# What the report shows of a row of Locust's.
COLUMNS: Final = ("50%", "95%", "99%")
AGGREGATED: Final = "Aggregated"


@dataclass(frozen=True, slots=True)
class Load:
    """Listeners over time.

    frames: as `--frames`: "55", "30:80" or "natural".
    processes: of Locust's own.
    """

    url: str
    shape: str
    users: int
    minutes: float
    voice: str = "alloy"
    frames: str = "natural"
    processes: int = 1


def run(load: Load, folder: Path) -> int:
    """Run the load; Locust's CSV files and page are in `folder`. Its exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "locust", "-f", _FILES, "--headless", "--only-summary"]
    command += ["-H", load.url, "--stop-timeout", str(_STOP_S), "--exit-code-on-error", "1"]
    command += ["--csv", str(folder.resolve() / "locust"), "--csv-full-history"]
    command += ["--html", str(folder.resolve() / "locust.html")]
    if load.processes > 1:
        command += ["--processes", str(load.processes)]
        # By default all runs on a machine would meet at one port.
        port = str(free_port())
        command += ["--master-bind-port", port, "--master-port", port]
    environment = {
        **os.environ,
        "PYTHONPATH": search_path(),
        "TTS_SHAPE": load.shape,
        "TTS_USERS": str(load.users),
        "TTS_MINUTES": f"{load.minutes:g}",
        "TTS_VOICE": load.voice,
        "TTS_FRAMES": load.frames,
        "TTS_OUTCOME": str(folder.resolve() / _OUTCOME),
    }
    with (folder / "locust.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False
        )
    return done.returncode


def outcome(folder: Path) -> dict[str, Any]:
    """What Locust says at the end: `rows` by kind of request, times in ms, and `faults`."""
    file = folder / _OUTCOME
    if not file.exists():
        return {"rows": [], "faults": []}
    found = json.loads(file.read_text(encoding="utf-8"))
    for row in found["rows"]:
        row.update(zip(COLUMNS, row.pop("times_ms"), strict=True))
    return found


def history(folder: Path) -> dict[str, Any]:
    """Over time: seconds, users, requests and failures per second, p95 of first playable in ms."""
    table = _table(folder / "locust_stats_history.csv")
    totals = [row for row in table if row["Name"] == AGGREGATED]
    playable = [row for row in table if row["Name"] == "first playable"]
    begin = min((int(row["Timestamp"]) for row in table), default=0)
    return {
        "at_s": [int(row["Timestamp"]) - begin for row in totals],
        "users": [int(row["User Count"]) for row in totals],
        "streams_per_s": _series(playable, totals, "Requests/s"),
        "failures_per_s": [float(row["Failures/s"]) for row in totals],
        "first_playable_p95_ms": _series(playable, totals, "95%"),
    }


def _series(
    part: Sequence[Mapping[str, str]], totals: Sequence[Mapping[str, str]], column: str
) -> list[float]:
    """Of the rows of a name, one for each second that the totals have."""
    values = {row["Timestamp"]: _number(row[column]) or 0.0 for row in part}
    return [values.get(row["Timestamp"], 0.0) for row in totals]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _table(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
