"""The report of a benchmark, composed from stored results alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.reports import files, plots, report
from load_tests.reports.frame_table import frame_table
from load_tests.reports.load_points import LoadPoint, number
from load_tests.reports.results import Results
from load_tests.reports.targets import target_table

_LOADS: Final = (
    "load",
    "requests",
    "failed",
    "first playable p50, ms",
    "p95, ms",
    "p95 of each burst, ms",
    "audio-s/s",
    "underruns (> 50 ms)",
    "client lag p99, ms",
)


def compose(folder: Path, jobs: Mapping[str, Mapping[str, Any]], missing: Mapping[str, str]) -> str:
    """Write `folder`/report.md and the plots; return the text.

    Args:
        folder: where to write.
        jobs: stored results by the name of their job.
        missing: why a job has no result, or not a whole one.
    """
    results = Results(jobs)
    sections = [
        "# Benchmark\n",
        _circumstances(results),
        "## Targets\n\n" + target_table(results),
        *_frames(results, folder),
        *_stages(results),
        *_http(results, folder),
        *_starts(results),
        *_peers(results),
    ]
    commands = [f"- `{result['facts']['command']}`" for result in jobs.values()]
    if commands:
        sections.append("## Commands\n\n" + "\n".join(commands))
    if missing:
        reasons = "\n".join(f"- `{name}`: {reason}" for name, reason in sorted(missing.items()))
        sections.append("## Not measured, or not to the end\n\n" + reasons)
    text = "\n\n".join(section.strip("\n") for section in sections) + "\n"
    files.write_text(folder / "report.md", text)
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    return "\n".join([*report.table_head(head, left), *(report.table_line(row) for row in rows)])


def _circumstances(results: Results) -> str:
    """One row per fact; several values where the parts differ, which a reader must see."""
    values: dict[str, dict[str, None]] = {}

    def note(name: str, value: object) -> None:
        if value not in (None, "", []):
            values.setdefault(name, {})[str(value)] = None

    for name, result in results.jobs.items():
        facts = result.get("facts", {})
        for gpu in facts.get("gpus", ()):
            note("GPU", f"{gpu['name']}, {gpu['memory.total']} MiB")
            note("driver", gpu["driver_version"])
        note("CPU cores", facts.get("cpus"))
        note("a million additions in Python, ms", facts.get("python_ms"))
        versions = {"python": facts.get("python"), **facts.get("versions", {})}
        note("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value))
        note("commit", facts.get("commit"))
        digest = facts.get("config_digest")
        if digest:
            note("configuration hash", f"{digest} ({name})")
        note("time", facts.get("time_utc"))
    for part, called in (("http", ""), ("throughput", ", profile throughput"), ("memory", "")):
        for name, server in results.servers(part):
            digest = (server.get("health") or {}).get("config_digest")
            if digest:
                note("configuration hash", f"{digest} ({name}{called})")
    seeds = {seed for point in _all_points(results) for seed in point.seeds}
    note("seeds of open loops", ", ".join(map(str, sorted(seeds))))
    note("workload", next(iter(_workloads(results)), None))
    times = sorted(values.pop("time", {}))
    if times:
        note("time (UTC)", f"{times[0]} to {times[-1]}")
    return _table(["", "measured with"], ((n, "; ".join(v)) for n, v in values.items()), left=2)


def _all_points(results: Results) -> Iterator[LoadPoint]:
    for name, _ in results.servers("http"):
        yield from results.points(*name.split("-", 1))


def _workloads(results: Results) -> Iterator[str]:
    for _, result in results.of("http"):
        workload = result["facts"]["workload"]
        low, high = workload["min_frames"], workload["max_frames"]
        frames = str(low) if low == high else f"{low} to {high}"
        yield f"{frames} frames of 80 ms per request, {workload['response_format']}, random weights"


def _frames(results: Results, folder: Path) -> Iterator[str]:
    for size, result in results.of("frame"):
        rows = results.frame_rows(size)
        plot = folder / f"frame-{size}.png"
        drawn = plots.frames(plot, rows, f"One frame, {size}")
        loops = [
            [f"{loop[key]:,.{digits}f}" for key, digits in _LOOP_COLUMNS.items()]
            for loop in result["loops"]
        ]
        yield (
            f"## One frame of all streams, {size}\n\n"
            "ms; in brackets the floor, by bytes at the memory's bandwidth, or with c by"
            " operations at the peak of bf16. Whole step: with the decoder beside it, in the same"
            f" process.\n\n{frame_table(rows)}\n\n"
            f"Contexts: {', '.join(f'{row.batch}: {row.context:.0f}' for row in rows)} positions,"
            f" with the decoder {', '.join(f'{row.context_whole:.0f}' for row in rows)}."
            + (f"\n\n![{plot.stem}]({plot.name})" if drawn else "")
            + "\n\nIn the same process, closed loops of requests of 60 frames"
            f" (one stream, 30 frames: first audio {result['first_audio_ms']:.1f} ms):\n\n"
            + _table(["streams", "first audio p50, ms", "worst, ms", "audio-s/s"], loops, left=0)
        )


_LOOP_COLUMNS: Final = {"streams": 0, "first_ms_p50": 1, "first_ms_max": 1, "audio_s_per_s": 0}


def _stages(results: Results) -> Iterator[str]:
    for size, result in results.of("predictor"):
        columns = ("batch", "floor", "eager", "default", "default error")
        rows = [[_cell(row[column]) for column in columns] for row in result["rows"]]
        head = ("streams", "floor, ms", "eager, ms", "ours, ms", "error (eager bf16 = 1)")
        yield f"## Code predictor alone, {size}\n\n{_table(head, rows, left=0)}"
    for _, result in results.of("decoder"):
        for dtype, entries in result["dtypes"].items():
            times = {(entry["streams"], entry["frames"]): entry["ms"] for entry in entries}
            streams, frames = ({key[place]: None for key in times} for place in (0, 1))
            rows = [[str(n), *(f"{times[n, t]:.2f}" for t in frames)] for n in streams]
            head = ["streams", *(f"{t} frames, ms" for t in frames)]
            yield f"## Speech decoder alone, {dtype}\n\n{_table(head, rows, left=0)}"
    ways = dict(results.of("first-audio"))
    if ways:
        head = ["size", *next(iter(ways.values()))["medians_ms"]]
        rows = [[size, *map(_cell, way["medians_ms"].values())] for size, way in ways.items()]
        yield f"## The way to the first audio, one stream, ms\n\n{_table(head, rows)}"


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _http(results: Results, folder: Path) -> Iterator[str]:
    by_size: dict[str, dict[str, list[LoadPoint]]] = {}
    served = [
        (part, kind, *found)
        for part, kind in (("http", ""), ("throughput", ", profile `throughput`"))
        for found in results.servers(part)
    ]
    for part, kind, name, server in served:
        placement, size = name.split("-", 1)
        points = results.points(placement, size, part)
        if part == "http":
            by_size.setdefault(size, {})[placement] = points
        notes = "".join(f"\n- {note}" for note in server["notes"])
        yield (
            f"## Over HTTP, `{placement}`{kind}, {size}\n\n"
            "Open loops: median over the seeds, in brackets the range."
            f"\n\n{_table(_LOADS, map(_load_row, points))}{chr(10) + notes if notes else ''}"
        )
    for size, series in by_size.items():
        plot = folder / f"http-{size}.png"
        if plots.loops(plot, series):
            yield f"![{plot.stem}]({plot.name})"


def _load_row(point: LoadPoint) -> list[str]:
    return [
        point.label,
        str(point.requests),
        str(point.failures),
        point.p50_ms.text(),
        point.p95_ms.text(),
        ", ".join(number(value, 0) for value in point.bursts_p95_ms) or "-",
        point.audio_s_per_s.text(0),
        f"{point.underruns} ({point.underruns_over_50_ms})",
        point.lag_p99_ms.text(),
    ]


# Parts that start servers, and with which settings.
_SETTINGS: Final = (
    ("http", "as over HTTP above"),
    ("throughput", "profile `throughput`"),
    ("startup", "as over HTTP above, no load"),
    ("memory", "as shipped, 64 streams"),
)


def _starts(results: Results) -> Iterator[str]:
    rows = []
    caches = {True: "empty", False: "filled", None: "not looked at"}
    for part, kind in _SETTINGS:
        for name, server in results.servers(part):
            placement, size = name.split("-", 1)
            for start in server["starts"]:
                rows.append(
                    [
                        *(f"`{placement}`", size, kind, caches[start["caches_empty"]]),
                        "never" if start["ready_s"] is None else f"{start['ready_s']:.1f}",
                        _memory(start["memory_idle_mib"]),
                        _memory(start["memory_peak_mib"]),
                    ]
                )
    if rows:
        head = ["placement", "size", "settings", "caches", "start to ready, s"]
        yield (
            "## Start and memory\n\nMemory in use on the GPU when ready, and the most under load."
            " A cold start has empty caches of Triton, vLLM, Inductor and CUDA; the operating"
            " system may have the packages in memory.\n\n"
            + _table([*head, "idle, MiB", "peak, MiB"], rows, left=4)
        )


def _memory(values: Sequence[int]) -> str:
    return "/".join(f"{value:,}" for value in values) or "-"


def _peers(results: Results) -> Iterator[str]:
    rows = [
        [
            f"{peer['peer']}, chunks of {peer['chunk']}",
            str(peer["frames"]),
            f"{peer['first_audio_ms']:,.1f}",
            f"{peer['rtf']:.3f}",
        ]
        for _, peer in results.of("peers")
    ]
    if rows:
        head = ["one stream, in process", "frames", "first audio, ms", "RTF"]
        yield f"## Peers on the same checkpoint\n\n{_table(head, rows)}"
