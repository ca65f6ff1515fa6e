"""Plots as PNG files; every function returns False where matplotlib is not installed."""

import importlib.util
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from load_tests.reports.frame_table import FrameRow
from load_tests.reports.load_points import LoadPoint

_HEADROOM: Final = 1.35
_STACKED: Final = ("talker", "predictor", "host", "decoder")


def is_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def _figure(path: Path, columns: int) -> Generator[Sequence[Any], None, None]:
    """Axes beside each other, written to `path` at the end."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, grid = pyplot.subplots(1, columns, figsize=(5.5 * columns, 4.2), squeeze=False)
    yield grid[0]
    for axes in grid[0]:
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def loops(path: Path, series: Mapping[str, Sequence[LoadPoint]]) -> bool:
    """First playable audio against the rate, audio seconds per second against the streams."""
    if not is_available():
        return False
    with _figure(path, 2) as (delays, throughput):
        for name, points in series.items():
            opened = [point for point in points if point.loop == "open"]
            rates = [point.load for point in opened]
            for quantile, style in (("p50", "--"), ("p95", "-")):
                spreads = [getattr(point, f"{quantile}_ms") for point in opened]
                (line,) = delays.plot(
                    rates,
                    [s.median for s in spreads],
                    style,
                    marker="o",
                    label=f"{name} {quantile}",
                )
                low, high = [s.low for s in spreads], [s.high for s in spreads]
                delays.fill_between(rates, low, high, alpha=0.15, color=line.get_color())
            closed = [point for point in points if point.loop == "closed"]
            throughput.plot(
                [point.load for point in closed],
                [point.audio_s_per_s.median for point in closed],
                marker="o",
                label=name,
            )
        delays.set(title="Open loop", xlabel="requests/s", ylabel="first playable audio, ms")
        delays.set_yscale("log")
        throughput.set(title="Closed loop", xlabel="streams", ylabel="audio seconds per second")
        throughput.set_xscale("log", base=2)
        streams = sorted(
            {p.load for points in series.values() for p in points if p.loop == "closed"}
        )
        throughput.set_xticks(streams, [f"{number:g}" for number in streams])
    return True


def usage(path: Path, series: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> bool:
    """What a process of each kind takes over the minutes of a run, and how many there are."""
    if not is_available():
        return False
    names = {
        "rss_mib": "resident memory per process, MiB",
        "descriptors": "open descriptors per process",
        "threads": "threads per process",
        "processes": "processes",
    }
    with _figure(path, len(names)) as grid:
        for axes, (name, label) in zip(grid, names.items(), strict=True):
            for kind, values in series.items():
                minutes = [at_s / 60 for at_s in values["at_s"]]
                axes.plot(minutes, values[name], marker=".", label=kind)
            axes.set(title=title, xlabel="minutes", ylabel=label)
            axes.set_ylim(bottom=0)
    return True


def frames(path: Path, rows: Sequence[FrameRow], title: str) -> bool:
    """The parts of a step stacked per number of streams, beside what the whole step takes."""
    if not is_available():
        return False
    with _figure(path, 1) as (axes,):
        places = range(len(rows))
        heights = [0.0 for _ in rows]
        for part in _STACKED:
            values = [max(0.0, getattr(row, f"{part}_ms")) for row in rows]
            axes.bar(places, values, 0.55, bottom=heights, label=part)
            heights = [below + value for below, value in zip(heights, values, strict=True)]
        axes.plot(places, [row.whole_ms for row in rows], "k_", ms=26, mew=2, label="whole step")
        axes.plot(places, [row.whole_floor_ms for row in rows], "k:", marker=".", label="floor")
        axes.set_xticks(list(places), [str(row.batch) for row in rows])
        axes.set(title=title, xlabel="streams", ylabel="ms per frame of all streams")
    return True


def curve(path: Path, shares: Sequence[Mapping[str, Any]]) -> bool:
    """Efficiency and first audio of each placement and load against one GPU's."""
    if not is_available() or not shares:
        return False
    with _figure(path, 2) as (efficiency, delays):
        for name in dict.fromkeys(f"{s['placement']}, {s['load']}" for s in shares):
            points = [s for s in shares if f"{s['placement']}, {s['load']}" == name]
            gpus = [point["gpus"] for point in points]
            for axes, key in ((efficiency, "share"), (delays, "p95_ratio")):
                axes.plot(gpus, [point[key] for point in points], marker="o", label=name)
        efficiency.set(title="Throughput", xlabel="GPUs", ylabel="of GPUs x one GPU's")
        efficiency.set_ylim(bottom=0)
        delays.set(title="First audio", xlabel="GPUs", ylabel="p95 of one GPU's p95")
        delays.set_ylim(bottom=0)
    return True


def steps(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    marks: Sequence[tuple[str, float]] = (),
) -> bool:
    """Series that keep their values until they change, over seconds; `marks` are named moments."""
    if not is_available():
        return False
    with _figure(path, len(panels)) as grid:
        for axes, (name, series) in zip(grid, panels.items(), strict=True):
            for label, (times, values) in series.items():
                axes.step(times, values, where="post", label=label)
            # Above them is room for the legend.
            axes.set_ylim(0, _HEADROOM * (axes.get_ylim()[1] or 1.0))
            for title, at_s in marks:
                axes.axvline(at_s, color="grey", linestyle=":")
                axes.text(at_s, 0, f" {title}", rotation=90, va="bottom", color="grey", fontsize=8)
            axes.set(xlabel="s", ylabel=name)
    return True
