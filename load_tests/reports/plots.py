"""Plots as PNG files; every function returns False where matplotlib is not installed."""

import importlib.util
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from load_tests.reports.frame_table import FrameRow
from load_tests.reports.load_points import LoadPoint

_HEADROOM: Final = 1.35
_ROOM_FOR_SIX: Final = 1.65
# Of placements: line and marker.
_STYLES: Final = ("o-", "s--")
_ROOM_FOR_NOTES: Final = 0.15
_DELAY_TICKS_MS: Final = (10, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000)
_STACKED: Final = ("talker", "predictor", "host", "decoder")


def is_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def _figure(
    path: Path, columns: int, inches: tuple[float, float] = (5.5, 4.2), dpi: int = 130
) -> Generator[Sequence[Any], None, None]:
    """Axes beside each other, written to `path` at the end; `inches` of one."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    size = (inches[0] * columns, inches[1])
    figure, grid = pyplot.subplots(1, columns, figsize=size, squeeze=False)
    yield grid[0]
    for axes in grid[0]:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
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


def curve(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    least_share: float,
    most_p95: float,
    notes: Mapping[tuple[str, str, int], str],
) -> bool:
    """Throughput and first audio of each placement's closed loops over the GPUs, with what one
    GPU's times their number would be, and its share that was reached. Fit for a column of 800 px.

    A cross is a point that has less than `least_share` of the throughput, or more than `most_p95`
    times the p95, of one GPU's; beside it `notes` of it, by (placement, load, GPUs).
    """
    closed = [row for row in rows if row["gpus"] and row["load"].startswith("closed")]
    if not is_available() or not closed:
        return False
    ticks = sorted({row["gpus"] for row in closed})
    placements = list(dict.fromkeys(row["placement"] for row in closed))
    with _figure(path, 2, (4.2, 3.7), dpi=200) as (throughput, delays):
        for name in dict.fromkeys((row["placement"], row["load"]) for row in closed):
            points = sorted(
                (row for row in closed if (row["placement"], row["load"]) == name),
                key=lambda row: row["gpus"],
            )
            gpus = [point["gpus"] for point in points]
            made = [point["audio_s_per_s"] for point in points]
            first_ms = [
                math.nan if point["first_p95_s"] is None else 1000 * point["first_p95_s"]
                for point in points
            ]
            has_one = gpus[0] == 1 and len(gpus) > 1
            shares = [value / (count * made[0]) for value, count in zip(made, gpus, strict=True)]
            label = f"{name[0]}, {name[1].removeprefix('closed, ').replace(' per ', ' a ')}"
            label += f": {100 * shares[-1]:.0f} %" if has_one else ""
            style = _STYLES[placements.index(name[0]) % len(_STYLES)]
            (line,) = throughput.plot(gpus, made, style, label=label, markersize=5)
            color = line.get_color()
            delays.plot(gpus, first_ms, style, color=color, markersize=5)
            if not has_one:
                continue
            throughput.plot(gpus, [n * made[0] for n in gpus], ":", color=color, linewidth=1)
            for count, value, share in zip(gpus, made, shares, strict=True):
                if share < least_share:
                    throughput.plot([count], [value], "x", color=color, markersize=11, mew=2.5)
                    _note(throughput, count, value, notes.get((*name, count), ""))
            for count, value in zip(gpus, first_ms, strict=True):
                if not value <= most_p95 * first_ms[0]:
                    delays.plot([count], [value], "x", color=color, markersize=11, mew=2.5)
        throughput.plot([], [], ":", color="grey", label="one GPU's, times the GPUs")
        for axes, aim in (
            (throughput, f"missed: {100 * least_share:.0f} % of that"),
            (delays, f"missed: {most_p95:g} x one GPU's"),
        ):
            axes.plot([], [], "x", color="black", markersize=7, mew=2, label=aim)
            axes.set_xticks(ticks)
            axes.set_xlabel("GPUs")
        throughput.set_xlim(right=throughput.get_xlim()[1] + _ROOM_FOR_NOTES * ticks[-1])
        throughput.set(title="Throughput, streams a GPU", ylabel="seconds of audio per second")
        throughput.set_ylim(0, _ROOM_FOR_SIX * (throughput.get_ylim()[1] or 1.0))
        delays.set(title="First audio, p95", ylabel="ms", yscale="log")
        low, high = delays.get_ylim()
        delays.set_ylim(low, _HEADROOM * high)
        marks = [mark for mark in _DELAY_TICKS_MS if low <= mark <= _HEADROOM * high]
        delays.set_yticks(marks, [str(mark) for mark in marks])
        delays.minorticks_off()
    return True


def _note(axes: Any, x: float, y: float, text: str) -> None:
    """Right of a point."""
    axes.annotate(
        text.replace(" % ", " %\n"),
        (x, y),
        (8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


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
