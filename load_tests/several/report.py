"""The report of several checkpoints, from what their servers gave as JSON."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, Final

from load_tests.reports.report import number, table_head, table_line

_LOAD: Final = (
    "model",
    "others",
    "loop",
    "streams",
    "requests",
    "failed",
    "first playable ms",
    "RTF",
    "audio-s/s",
    "underruns (> 50 ms)",
)
_ORDER: Final = {"none": 0, "idle": 1, "busy": 2}
_LOOPS: Final = ("cold", "closed", "burst")


def markdown(servers: Mapping[str, Mapping[str, Any]]) -> str:
    """Circumstances, load, memory and voices of all servers, by their names."""
    if not servers:
        return "# Several checkpoints in one server\n\nNothing was measured.\n"
    parts = [
        "# Several checkpoints in one server",
        "\n".join(_circumstances(servers)),
        "\n".join(_load(servers)),
        "\n".join(_memory(servers)),
        *("\n".join(_voices(name, server)) for name, server in servers.items() if server["voices"]),
    ]
    return "\n\n".join(parts) + "\n"


def _circumstances(servers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, server in servers.items():
        facts = server["facts"]
        machine = ", ".join(gpu["name"] for gpu in facts["gpus"]) or f"{facts['cpus']} CPUs, no GPU"
        ready = "never" if server["ready_s"] is None else f"after {server['ready_s']:.1f} s"
        yield (
            f"- {name}: {', '.join(server['models'])}; {machine}; commit {facts['commit']}; ready"
            f" {ready}; load average at the beginning {facts['load_average']:.1f}"
        )
        if not server["is_whole"]:
            yield "  - not all of it was measured"
        yield from (f"  - {note}" for note in server["notes"])


def _load(servers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "`others` is what the models beside it did; `cold` the first burst that a model got."
        " Triples are p50 / p95 / p99.\n"
    )
    yield from table_head(_LOAD, left=3)
    rows = [row for server in servers.values() for row in server["rows"]]
    for row in sorted(rows, key=_place):
        rate = row["audio_s_per_s_window"]
        yield table_line(
            [
                row["model"],
                row["others"],
                row["loop"],
                str(row["streams"]),
                str(row["requests"]),
                str(row["failures"]),
                _triple(row["first_playable_s"], 1000, 1),
                _triple(row["rtf"], 1, 3),
                number(row["audio_s_per_s"] if rate is None else rate, 1),
                f"{row['underruns']} ({row['underruns_over_50_ms']})",
            ]
        )


def _place(row: Mapping[str, Any]) -> tuple[str, int, int, int]:
    return row["model"], _LOOPS.index(row["loop"]), row["streams"], _ORDER[row["others"]]


def _memory(servers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    used = {name: server["memory_mib"] for name, server in servers.items()}
    times = list(dict.fromkeys(when for at in used.values() for when in at))
    yield "Memory in use on each GPU, MiB; `with encoder`: after the first recording was encoded.\n"
    yield from table_head(["server", *times])
    for name, at in used.items():
        yield table_line([name, *("/".join(map(str, at.get(when) or "-")) for when in times)])


def _voices(name: str, server: Mapping[str, Any]) -> Iterator[str]:
    voices = server["voices"]
    yield f"Voices of recordings in `{name}`, one request at a time; first audio in ms:\n"
    how = "uploaded, until it was heard" if voices["is_new"] else "there before, first heard"
    yield f"- voice of the library, {how}: {voices['first_ms']:.0f}"
    for how, took in voices["stored_ms"].items():
        yield f"- voice of the library, {how}: {took:.1f}"
    yield ""
    yield from table_head(["recording in the request", "new", "of that the voice", "again"])
    for seconds, new in voices["new_ms"].items():
        others = (voices[kind][seconds] for kind in ("voice_ms", "again_ms"))
        yield table_line([f"{seconds} s", f"{new:.1f}", *(f"{other:.1f}" for other in others)])
    took = {float(seconds): each for seconds, each in voices["voice_ms"].items()}
    if len(took) > 1:
        slope, rest = statistics.linear_regression(list(took), list(took.values()))
        each = f"{slope:.1f} ms for each second of a recording, and {rest:.1f} ms beside"
        yield f"\nThe voice took {each}."


def _triple(figures: Mapping[str, float | None], scale: float, digits: int) -> str:
    """Of which None is infinitely late, as JSON has it."""
    found = (figures[q] for q in ("p50", "p95", "p99"))
    return " / ".join("failed" if f is None else number(scale * f, digits) for f in found)
