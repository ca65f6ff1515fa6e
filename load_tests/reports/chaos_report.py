"""The report of a chaos run, composed from its stored result alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from load_tests.reports import files, plots
from load_tests.reports.report import number, table_head, table_line

_PHASES: Final = (
    "load",
    "requests",
    "complete",
    "refused",
    "left",
    "lost",
    "broken",
    "unequal",
    "dry",
    "first audio p50 / p95, ms",
    "longest gap, s",
    "complete/s",
    "client late p99, ms",
    "machine's load",
)
_USAGE: Final = {
    "processes": "processes",
    "rss_mib": "MiB each",
    "descriptors": "descriptors each",
    "threads": "threads each",
}
_EQUAL: Final = ("exact", "rounded")
# What is asked of an overload: how many times full load's p95 a first audio may take, what share of
# its throughput is left, and how soon who is refused hears of it and who comes after it is served.
SLOWER: Final = 1.5
_LEAST_SHARE: Final = 0.95
_REFUSED_S: Final = 0.05
_RECOVERED_S: Final = 2.0
# What grows by more than this, and by more than noise, is said in bold.
_GROWTH: Final = 1.15


class TurnLike(Protocol):
    """What a line about a turn is made of."""

    @property
    def phase(self) -> str: ...
    @property
    def span_s(self) -> float: ...
    @property
    def outcomes(self) -> Sequence[Any]: ...


def turn_line(turn: TurnLike) -> str:
    """One line on the console when a turn has ended."""
    fates: dict[str, int] = {}
    for outcome in turn.outcomes:
        fates[outcome.fate] = fates.get(outcome.fate, 0) + 1
    said = ", ".join(f"{count} {fate}" for fate, count in fates.items()) or "no request"
    return f"{turn.phase}: {said} in {turn.span_s:.1f} s"


def compose(folder: Path, result: Mapping[str, Any]) -> str:
    """Write `folder`/report.md, and the plot of what processes take; return the text."""
    usage = folder / "usage.png"
    drawn = plots.usage(usage, result["usage"], "Under load") if result["usage"] else False
    sections = [
        "# Chaos\n",
        _verdict(result),
        _circumstances(result["facts"]),
        "## Loads\n\n" + _phases(result),
        *_overloads(result),
        *_refusals(result),
        *_changes(result),
        *_strikes(result),
        *_worst(result),
        *_usage(result, usage.name if drawn else None),
        f"## Health\n\n{_states(result)}",
    ]
    text = "\n\n".join(section.strip("\n") for section in sections) + "\n"
    files.write_text(folder / "report.md", text)
    return text


def _verdict(result: Mapping[str, Any]) -> str:
    requests = sum(phase["requests"] for phase in result["phases"])
    strikes = result["strikes"]
    healed = [s["healed_s"] for s in strikes if s["healed_s"] is not None]
    gaps = [phase["longest_gap_s"] or 0.0 for phase in result["phases"]]
    exact, rounded = (sum(phase[name] for phase in result["phases"]) for name in _EQUAL)
    unequal = sum(phase["fates"]["unequal"] for phase in result["phases"])
    lines = [
        f"**{result['bad']} of {requests} requests lost, broken or unequal.**"
        f" Of {result['compared']} streams that were compared with the undisturbed one {exact} are"
        f" equal bit for bit, {rounded} but for rounding, {unequal} are not equal.",
        f"{len(strikes)} signals; {len(healed)} times the server was seen whole again, after"
        f" {_seconds(max(healed, default=None))} at the longest."
        f" Longest gap within a stream: {_seconds(max(gaps, default=None))}.",
    ]
    if result["late_kernels"]:
        lines.append(f"**{result['late_kernels']} kernels were compiled after ready.**")
    return "\n\n".join(lines)


def _circumstances(facts: Mapping[str, Any]) -> str:
    machine = ", ".join(gpu["name"] for gpu in facts["gpus"]) or f"{facts['cpus']} CPUs, no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{machine}; load average {facts['load_average']:.1f} at the start; {versions};"
        f" commit {facts['commit']}; ready after {_seconds(facts.get('ready_s'))}."
        f"\n\n`{facts['command']}`"
    )


def _phases(result: Mapping[str, Any]) -> str:
    rows = []
    for phase in result["phases"]:
        fates = phase["fates"]
        rows.append(
            [
                phase["phase"],
                str(phase["requests"]),
                *(
                    str(fates[name])
                    for name in ("complete", "refused", "left", "lost", "broken", "unequal")
                ),
                str(phase["dry"]),
                f"{_ms(phase['first_audio_p50_s'])} / {_ms(phase['first_audio_p95_s'])}",
                number(phase["longest_gap_s"], 2),
                number(phase["complete_per_s"], 2),
                _ms(phase["client_lag_p99_s"]),
                number(phase["load_average"], 1),
            ]
        )
    return "\n".join([*table_head(_PHASES), *map(table_line, rows)])


def _refusals(result: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        [
            phase["phase"],
            str(phase["refusals"]["count"]),
            f"{_ms(phase['refusals']['p50_s'])} / {_ms(phase['refusals']['p95_s'])}",
            ", ".join(f"{value:g}" for value in phase["refusals"]["retry_after_s"]) or "-",
            str(phase["refusals"]["without_retry_after"]),
        ]
        for phase in result["phases"]
        if phase["refusals"]["count"]
    ]
    head = ("load", "refused", "answered p50 / p95, ms", "Retry-After, s", "without it")
    lines = [*table_head(head), *map(table_line, rows)]
    if rows:
        yield "\n".join(["## Refused", "", *lines])


def _overloads(result: Mapping[str, Any]) -> Iterator[str]:
    """Each overload beside full load; bold: an aim that is missed."""
    phases = {phase["phase"]: phase for phase in result["phases"]}
    full, full_p95_s = phases.get("full load"), result["full_p95_s"]
    if full is None or full_p95_s is None:
        return
    rows = []
    for entry in result["recoveries"]:
        phase = phases[f"overload {entry['factor']:g}x"]
        slower = _ratio(phase["first_audio_p95_s"], full_p95_s)
        share = _ratio(phase["complete_per_s"], full["complete_per_s"])
        refusal_s = phase["refusals"]["p95_s"]
        bad = sum(phase["fates"][fate] for fate in ("lost", "broken", "unequal"))
        recovery_s = entry["seconds"]
        rows.append(
            [
                f"{entry['factor']:g}x",
                f"{_ms(phase['first_audio_p95_s'])}, {_aimed(slower, 2, slower <= SLOWER)} times",
                f"{number(phase['complete_per_s'], 2)},"
                f" {_aimed(100 * share, 0, share >= _LEAST_SHARE)} %",
                _aimed(phase["dry"], 0, not phase["dry"]),
                _aimed(bad, 0, not bad),
                _aimed(_ms(refusal_s), None, refusal_s is None or refusal_s <= _REFUSED_S),
                _aimed(
                    _seconds(recovery_s),
                    None,
                    recovery_s is not None and recovery_s <= _RECOVERED_S,
                ),
                _ms(phase["client_lag_p99_s"]),
            ]
        )
    if rows:
        head = (
            "load",
            f"accepted p95, ms, of full load's (aim: {SLOWER:g})",
            f"complete/s, of full load's (aim: {100 * _LEAST_SHARE:.0f} %)",
            "dry (aim: 0)",
            "lost, broken or unequal (aim: 0)",
            f"refused p95, ms (aim: {1000 * _REFUSED_S:.0f})",
            f"first audio as at full load after (aim: {_RECOVERED_S:.0f} s)",
            "client late p99, ms",
        )
        yield "\n".join(
            [
                "## Overload",
                "",
                f"Full load, without the burst that it begins with: first audio p95"
                f" {_ms(full_p95_s)} ms; {number(full['complete_per_s'], 2)} complete/s;"
                f" {full['dry']} dry. Bold: an aim that is missed.",
                "",
                *table_head(head),
                *map(table_line, rows),
            ]
        )


def _ratio(value: float | None, base: float | None) -> float:
    return math.nan if value is None or not base else value / base


def _aimed(value: float | str, digits: int | None, is_met: bool) -> str:
    text = str(value) if digits is None else number(float(value), digits)
    return text if is_met else f"**{text}**"


def _changes(result: Mapping[str, Any]) -> Iterator[str]:
    if result.get("changes"):
        lines = [
            f"- {made['change']}: all processes as they should be after {_seconds(made['done_s'])}"
            for made in result["changes"]
        ]
        yield "\n".join(["## Planned changes", "", *lines])


def _strikes(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["strikes"]:
        return
    rows = [
        [
            f"{strike['at_s']:.1f}",
            strike["kind"],
            strike["signal"],
            f"{strike['pid']}, one of {strike['of']}",
            number(strike["healed_s"], 1),
            number(strike["gone_s"], 1),
            f"{strike['open']} ({strike['open_bad']})",
            number(strike["longest_gap_s"], 2),
        ]
        for strike in result["strikes"]
    ]
    head = (
        *("at, s", "process", "signal", "pid", "whole again after, s", "process gone after, s"),
        *("open requests (of them bad)", "longest wait meanwhile, s"),
    )
    yield "\n".join(["## Signals", "", *table_head(head, 4), *map(table_line, rows)])


def _worst(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["worst"]:
        return
    lines = ["## Lost, broken or unequal", ""]
    for entry in result["worst"]:
        last, comparison = entry["last_strike"], entry["comparison"]
        since = (
            f"; {last['signal']} to {last['kind']} {last['before_end_s']:.1f} s before its end"
            if last
            else ""
        )
        differs = (
            f"; {comparison['wrong']} samples differ by up to {comparison['largest']},"
            f" from frame {entry['frame']} on"
            if comparison and comparison["wrong"]
            else ""
        )
        lines.append(
            f"- {entry['fate']}: {entry['phase']}, request {entry['request']},"
            f" {entry['sent_s']:.1f} to {entry['end_s']:.1f} s, status {entry['status']},"
            f" {entry['samples']} of {entry['expected_samples']} samples:"
            f" {entry['error'] or 'complete'} {entry['detail']}{differs}{since}"
        )
    if result["bad"] > len(result["worst"]):
        lines.append(f"- and {result['bad'] - len(result['worst'])} more")
    yield "\n".join(lines)


def _usage(result: Mapping[str, Any], plot: str | None) -> Iterator[str]:
    by_kind: dict[str, dict[str, str]] = {}
    for entry in result["growth"]:
        before, after = entry["before"], entry["after"]
        text = f"{before:,.0f} to {after:,.0f}"
        grown = after > _GROWTH * before and after - before > 2
        by_kind.setdefault(entry["kind"], {})[entry["name"]] = f"**{text}**" if grown else text
    if not by_kind:
        return
    rows = [[kind, *(cells[name] for name in _USAGE)] for kind, cells in by_kind.items()]
    lines = [
        "## What the processes take",
        "",
        "Medians over the first and the last third of the run; bold: grown by more than 15 %.",
        "",
        *table_head(("process", *_USAGE.values())),
        *map(table_line, rows),
    ]
    if plot:
        lines += ["", f"![usage]({plot})"]
    yield "\n".join(lines)


def _states(result: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{entry['at_s']:.0f} s {entry['state'] or 'no answer'}" for entry in result["states"]
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None or math.isnan(seconds) else f"{1000 * seconds:,.0f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f} s"
