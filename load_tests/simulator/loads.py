"""Arrivals over time: functions of a seed, or recorded.

A load is requests per second at each second and the lengths of speech, in codec frames (80 ms).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, second by second.

    Attributes:
        arrivals: int64 [seconds], requests that come in each.
        lengths: int64 [n], frames; requests take them in turn.
        losses: share of the replicas that die, by the second.
    """

    name: str
    arrivals: np.ndarray
    lengths: np.ndarray
    losses: Mapping[int, float] = field(default_factory=dict)


def lengths(draw: np.random.Generator, mean_frames: float, count: int = 65_536) -> np.ndarray:
    """Heavy-tailed: the longest are a hundred times the median, up to the model's limit."""
    spread = 1.0
    drawn = draw.lognormal(np.log(mean_frames) - spread**2 / 2, spread, count)
    return np.clip(np.round(drawn), 4, 8192).astype(np.int64)


def diurnal(seed: int, peak_hz: float, seconds: int = DAY_S, frames: float = 60.0) -> Load:
    """A day: a night at an eighth of the peak, two humps, and noise of minutes."""
    draw = np.random.default_rng(seed)
    hours = np.arange(seconds) * 24 / seconds
    shape = (
        0.12 + 0.75 * np.exp(-(((hours - 11) / 3.2) ** 2)) + np.exp(-(((hours - 20) / 2.2) ** 2))
    )
    noise = np.interp(
        np.arange(seconds), np.arange(0, seconds + 60, 60),
        draw.normal(1.0, 0.05, seconds // 60 + 1 + bool(seconds % 60)),
    )  # fmt: skip
    rate = peak_hz * shape / shape.max() * np.clip(noise, 0.5, 1.5)
    return Load("diurnal", draw.poisson(rate), lengths(draw, frames))


def flash_crowd(
    seed: int, base_hz: float, times: float = 10.0, ramp_s: int = 20, frames: float = 60.0
) -> Load:
    """Half an hour in which `times` as many come within `ramp_s`, stay for ten minutes, and go."""
    draw = np.random.default_rng(seed)
    points = (0, 600, 600 + ramp_s, 1200, 1260, 1800)
    rate = np.interp(np.arange(1800), points, np.array([1, 1, times, times, 1, 1]) * base_hz)
    return Load("flash crowd", draw.poisson(rate), lengths(draw, frames))


def bursty(seed: int, mean_hz: float, seconds: int = 3600, frames: float = 60.0) -> Load:
    """A Poisson process whose rate jumps between a half and the triple, staying for minutes."""
    draw = np.random.default_rng(seed)
    rate = np.empty(seconds)
    at = 0
    while at < seconds:
        stay = int(draw.exponential(90)) + 5
        rate[at : at + stay] = mean_hz * draw.choice((0.5, 1.0, 3.0), p=(0.5, 0.4, 0.1))
        at += stay
    return Load("bursty", draw.poisson(rate), lengths(draw, frames))


def node_loss(seed: int, mean_hz: float, share: float = 0.25) -> Load:
    """A steady hour in which a part of the replicas dies three times."""
    draw = np.random.default_rng(seed)
    losses = {900: share, 1800: share, 2700: share}
    return Load("node loss", draw.poisson(mean_hz, 3600), lengths(draw, 60.0), losses)


def recorded(file: Path) -> Load:
    """Lines of JSON with `at_s` and `frames`, one for each request, in any order."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    if not rows:
        raise ValueError(f"{file} has no request")
    return of_requests(file.stem, sorted((row["at_s"], row["frames"]) for row in rows))


def of_requests(name: str, rows: Sequence[tuple[float, int]]) -> Load:
    """Of seconds and frames of each, in the order in which they came; one at least."""
    times = np.array([int(at_s - rows[0][0]) for at_s, _ in rows])
    return Load(name, np.bincount(times), np.array([frames for _, frames in rows]))


LOADS: Final[Mapping[str, Callable[[int, float], Load]]] = {
    "diurnal": diurnal,
    "flash": flash_crowd,
    "bursty": bursty,
    "loss": node_loss,
}
