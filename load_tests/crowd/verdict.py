"""What a listener's figures beside a crowd say, and the report of them. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from load_tests.crowd.clients import FORMATS
from load_tests.loops.metrics import Summary

# Of the machine, idle: below it who is measured waits for a processor.
_SOME_TIME: Final = 0.1


@dataclass(frozen=True, slots=True)
class Measured:
    """A listener alone, beside the crowd and alone again; what became of the crowd; memory.

    memory_mib: readings beside the crowd, of all processes together; empty where none is known.
    cores: that those took beside the crowd; idle: share of the machine's time that was left.
    """

    alone: Summary
    beside: Summary
    after: Summary
    fates: Mapping[tuple[str, str, str], int]
    first_failure: str
    memory_mib: Sequence[float]
    growth_mib: float | None
    cores: float
    idle: float

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: asdict(getattr(self, name)) for name in ("alone", "beside", "after")},
            "crowd": {" ".join(key): count for key, count in self.fates.items()},
            "first_failure": self.first_failure,
            "memory_mib": list(self.memory_mib),
            "growth_mib": self.growth_mib,
            "cores": self.cores,
            "idle": self.idle,
        }


def problems(measured: Measured, slack_s: float, growth: float) -> list[str]:
    """Every way in which the listener, the crowd or the memory was not as it should be."""
    found = []
    for name in ("alone", "beside", "after"):
        summary: Summary = getattr(measured, name)
        if summary.failures:
            found.append(
                f"{summary.failures} of the listener's requests failed {name}:"
                f" {summary.first_detail}"
            )
    alone, beside = measured.alone, measured.beside
    rise_s = beside.first_playable_s.p95 - alone.first_playable_s.p95
    if rise_s > slack_s:
        found.append(f"first audio (p95) came {1000 * rise_s:.0f} ms later beside the crowd")
    if beside.underruns_over_50_ms > alone.underruns_over_50_ms:
        found.append(f"{beside.underruns_over_50_ms} answers ran dry beside the crowd")
    failed = sum(n for (_, _, fate), n in measured.fates.items() if fate == "failed")
    if failed:
        found.append(f"{failed} requests of the crowd failed: {measured.first_failure}")
    if measured.growth_mib is not None:
        limit_mib = growth * max(measured.memory_mib)
        if measured.growth_mib > limit_mib:
            found.append(f"memory kept growing: {measured.growth_mib:.0f} MiB in a third")
    return found


def markdown(measured: Measured, facts: Mapping[str, Any], found: Sequence[str]) -> str:
    lines = [
        "# A listener beside a crowd",
        "",
        f"`{facts['command']}`, commit {facts['commit']}, {facts['time_utc']},"
        f" {facts['cpus']} CPUs, load {facts['load_average']:.1f}",
        "",
        "| listener | requests | failed | first audio p50 / p95, ms | RTF p50 / p95"
        " | longest gap p95, ms | ran dry > 50 ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("alone", "beside", "after"):
        one: Summary = getattr(measured, name)
        first, rtf = one.first_playable_s, one.rtf
        lines.append(
            f"| {name} | {one.requests} | {one.failures}"
            f" | {1000 * first.p50:.1f} / {1000 * first.p95:.1f} | {rtf.p50:.3f} / {rtf.p95:.3f}"
            f" | {1000 * one.longest_gap_s.p95:.0f} | {one.underruns_over_50_ms} |"
        )
    lines += ["", "| crowd | " + " | ".join(FORMATS) + " |", "|---|" + "---:|" * len(FORMATS)]
    rows: dict[tuple[str, str], Counter[str]] = {}
    for (kind, form, fate), count in sorted(measured.fates.items()):
        rows.setdefault((kind, fate), Counter())[form] += count
    for (kind, fate), counts in rows.items():
        lines.append(f"| {kind}, {fate} | {' | '.join(str(counts[form]) for form in FORMATS)} |")
    if measured.memory_mib:
        grown = "" if measured.growth_mib is None else f", grown {measured.growth_mib:+.1f}"
        lines += [
            "",
            f"Memory beside the crowd: {measured.memory_mib[0]:.0f} MiB at first,"
            f" {max(measured.memory_mib):.0f} at most, {measured.memory_mib[-1]:.0f} at last"
            f"{grown} from the second third to the last.",
        ]
    lines += [
        "",
        f"Beside the crowd the server took {measured.cores:.2f} cores, and {measured.idle:.0%} of"
        " the machine's time was left.",
    ]
    if measured.idle < _SOME_TIME:
        lines.append("With so little of it the listener's times are those of the machine.")
    lines += ["", *(f"- {problem}" for problem in found or ["nothing wrong"]), ""]
    return "\n".join(lines)
