"""The report of a step of load, composed from its stored trace alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from load_tests.chaos.outcomes import BAD
from load_tests.reports import files, plots
from load_tests.reports.report import table_head, table_line

_INPUTS: Final = (
    *("streams", "waiting", "arrivals_per_s", "refused_per_s", "growth", "service_s"),
    *("first_audio_p95_s", "slack_p05_s", "kv", "want"),
)
_DECISIONS: Final = 60


def faults(result: Mapping[str, Any]) -> list[str]:
    """What did not go as it should, in words."""
    found = []
    for name in result["stages"]:
        if result["ready_after_s"][name] is None:
            found.append(f"{name} never had {result['most']} replicas")
        if result["back_after_s"][name] is None:
            found.append(f"{name} did not come back to one replica")
    for change in result["changes"]:
        if change["done_s"] is None:
            found.append(f"the {change['change']} was not seen to end")
    bad = sum(phase["fates"][fate] for phase in result["phases"] for fate in BAD)
    if bad:
        found.append(f"{bad} streams were lost, broken or unequal")
    if not any(phase["fates"]["complete"] for phase in result["phases"]):
        found.append("no stream was complete")
    return found


def compose(folder: Path, result: Mapping[str, Any]) -> str:
    """Write `folder`/report.md and trace.png; return the text."""
    drawn = draw(folder / "trace.png", result)
    facts = result["facts"]
    wrong = faults(result)
    parts = [
        "# A step of load",
        "**" + ("; ".join(wrong) if wrong else "As it should be.") + "**",
        f"{facts['placement']}, {result['most']} nodes of one replica of each stage,"
        f" {facts['cpus']} CPUs; replicas carry {facts['capacity']} streams; policy as it"
        f" ships but for {facts['policy']}; commit {facts['commit']}\n\n`{facts['command']}`",
        *(["![trace](trace.png)"] if drawn else []),
        "\n".join(_stages(result)),
        "Seconds are from the beginning of the step, and of what came after it; 0.0: it was so"
        " before.",
        f"Stages had unequal numbers of replicas for {result['apart_s']:.1f} s of"
        f" {result['end_s']:.0f} s (starting and stopping ones counted, an update not).",
        *_changes(result),
        "At the end of the step: " + "; ".join(", ".join(there) for there in result["nodes"]) + ".",
        "\n".join(_phases(result)),
        "## Decisions\n\n" + "\n".join(_decisions(result)),
    ]
    text = "\n\n".join(parts) + "\n"
    files.write_text(folder / "report.md", text)
    return text


def draw(path: Path, result: Mapping[str, Any]) -> bool:
    def series(step: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        return step["at_s"], step["values"]

    firsts = result["first_audio_p95_s"]
    wanted = [(max(0.0, d["at_s"]), d["want"]) for d in _since_load(result)]
    panels = {
        "replicas": {
            **{f"{name} runs": series(result["running"][name]) for name in result["stages"]},
            "wanted": ([at_s for at_s, _ in wanted], [want for _, want in wanted]),
        },
        "streams": {
            "open": series(result["streams"]),
            "waiting for first audio": series(result["waiting"]),
        },
        "first audio, s": {"p95 of 5 s": series(firsts)},
    }
    marks = [(turn["name"], turn["begin_s"]) for turn in result["turns"]]
    return plots.steps(path, panels, marks)


def _stages(result: Mapping[str, Any]) -> Iterator[str]:
    head = ("stage", "asked for after s", "ready after s", "back to one after s")
    yield from table_head(head)
    for name in result["stages"]:
        times = (result[key][name] for key in ("asked_after_s", "ready_after_s", "back_after_s"))
        yield table_line([name, *("never" if t is None else f"{t:.1f}" for t in times)])


def _changes(result: Mapping[str, Any]) -> Iterator[str]:
    for change in result["changes"]:
        if change["done_s"] is not None:
            yield (
                f"{change['change']}: other settings, under load; every process of stages and"
                f" ingresses had been replaced after {change['done_s']:.1f} s."
            )


def _phases(result: Mapping[str, Any]) -> Iterator[str]:
    head = ("load", "requests", "complete", "refused", "lost, broken, unequal", "first p95 ms")
    yield from table_head(head)
    for phase in result["phases"]:
        fates = phase["fates"]
        first_s = phase["first_audio_p95_s"]
        yield table_line(
            [
                phase["phase"],
                str(phase["requests"]),
                str(fates["complete"]),
                str(fates["refused"]),
                str(sum(fates[fate] for fate in BAD)),
                "-" if first_s is None else f"{1000 * first_s:.0f}",
            ]
        )


def _decisions(result: Mapping[str, Any]) -> Iterator[str]:
    """What was decided since the load began, and by what; the last before it as well."""
    told = _since_load(result)
    yield from table_head(("at s", "reason", "replicas", *_INPUTS), left=2)
    for decision in told[:_DECISIONS]:
        counts = [n for name, n in decision["targets"].items() if name in result["stages"]]
        yield table_line(
            [
                f"{decision['at_s']:.1f}",
                decision["reason"],
                "/".join(str(n) for n in dict.fromkeys(counts)),
                *(str(decision.get(name, "")) for name in _INPUTS),
            ]
        )
    if len(told) > _DECISIONS:
        yield f"\n{len(told) - _DECISIONS} more in trace.json"


def _since_load(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The decisions since the load began, and the one that held until then."""
    told = [decision for decision in result["decisions"] if "want" in decision]
    return [d for d in told if d["at_s"] < 0][-1:] + [d for d in told if d["at_s"] >= 0]
