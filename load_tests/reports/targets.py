"""What the project set out to reach on one H200 with the 1.7B shapes, and whether it did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from load_tests.reports import report
from load_tests.reports.load_points import LoadPoint
from load_tests.reports.results import Results

SIZE: Final = "1.7b"
_P95_MS: Final = 100.0


@dataclass(frozen=True, slots=True)
class Target:
    """A limit and where its figure is found; None where it was not measured."""

    text: str
    unit: str
    sense: Literal["<=", ">="]
    limit: float
    figure: Callable[[Results], float | None]

    def row(self, results: Results) -> list[str]:
        value = self.figure(results)
        met = value is not None and (
            value <= self.limit if self.sense == "<=" else value >= self.limit
        )
        return [
            self.text,
            f"{self.sense} {self.limit:,g} {self.unit}",
            "-" if value is None else f"{value:,.{0 if abs(value) >= 100 else 1 + (value < 10)}f}",
            "not measured" if value is None else ("met" if met else "**missed**"),
        ]


def _delay(
    placement: str, loop: str, load: float, quantile: Literal["p50", "p95"]
) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        point = results.point(placement, SIZE, loop, load)
        return None if point is None else getattr(point, f"{quantile}_ms").median

    return figure


def _throughput(
    placement: str, streams: float, part: str = "http"
) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        point = results.point(placement, SIZE, "closed", streams, part)
        return None if point is None else point.audio_s_per_s.median

    return figure


def _predictor(batch: int) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        row, alone = results.frame_row(SIZE, batch), results.predictor_ms(SIZE, batch)
        return row.predictor_ms if alone is None and row else alone

    return figure


def _whole(batch: int) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        row = results.frame_row(SIZE, batch)
        return row.whole_ms if row else None

    return figure


def sustained_rate(points: Sequence[LoadPoint]) -> float | None:
    """The highest rate up to which every run's p95 is within the limit and no stream ran dry."""
    best = None
    for point in sorted(
        (point for point in points if point.loop == "open"), key=lambda point: point.load
    ):
        if point.p95_ms.high > _P95_MS or point.underruns or point.failures:
            return best or 0.0
        best = point.load
    return best


def _sustained(results: Results) -> float | None:
    return sustained_rate(results.points("fused", SIZE))


TARGETS: Final = (
    Target("`fused`, one stream, p50", "ms", "<=", 12, _delay("fused", "closed", 1, "p50")),
    Target("`split`, one stream, p50", "ms", "<=", 18, _delay("split", "closed", 1, "p50")),
    Target("`fused`, 20 requests/s, p50", "ms", "<=", 16, _delay("fused", "open", 20, "p50")),
    Target("`fused`, 20 requests/s, p95", "ms", "<=", 28, _delay("fused", "open", 20, "p95")),
    Target("`fused`, p95 <= 100 ms, no underrun, up to", "requests/s", ">=", 60, _sustained),
    Target("`fused`, 64 streams", "audio-s/s", ">=", 800, _throughput("fused", 64)),
    Target("`fused`, 256 streams", "audio-s/s", ">=", 1500, _throughput("fused", 256)),
    Target(
        "the same with profile `throughput`, 64 streams",
        "audio-s/s",
        ">=",
        800,
        _throughput("fused", 64, "throughput"),
    ),
    Target(
        "the same with profile `throughput`, 256 streams",
        "audio-s/s",
        ">=",
        1500,
        _throughput("fused", 256, "throughput"),
    ),
    Target("code predictor, 1 stream", "ms", "<=", 1.5, _predictor(1)),
    Target("code predictor, 64 streams", "ms", "<=", 2.5, _predictor(64)),
    Target("whole frame step, 1 stream", "ms", "<=", 4, _whole(1)),
    Target("whole frame step, 64 streams", "ms", "<=", 8, _whole(64)),
)


def target_table(results: Results) -> str:
    head = ["target, 1.7b", "limit", "measured", ""]
    lines = [report.table_line(head), "|---| ---: | ---: |---|"]
    lines += [report.table_line(target.row(results)) for target in TARGETS]
    return "\n".join(lines)
