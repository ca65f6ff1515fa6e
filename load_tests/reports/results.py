"""Stored results of a benchmark, found by what they are about."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from load_tests.reports.frame_table import FrameRow
from load_tests.reports.load_points import LoadPoint, load_points


@dataclass(frozen=True, slots=True)
class Results:
    """Results by the name of their job, as `jobs.Store.all` gives them."""

    jobs: Mapping[str, Mapping[str, Any]]

    def of(self, part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name, without the part, and result of each job of a part."""
        for name, result in self.jobs.items():
            if name == part or name.startswith(f"{part}-"):
                yield name[len(part) + 1 :], result

    def servers(self, part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name and server of each job of a part that has one; the name is placement-size."""
        for name, result in self.of(part):
            for server in result.get("servers", ()):
                yield name, server

    def points(self, placement: str, size: str, part: str = "http") -> list[LoadPoint]:
        """Loads over HTTP; those of the profile for many streams are part `throughput`."""
        servers = dict(self.servers(part))
        server = servers.get(f"{placement}-{size}")
        return [] if server is None else load_points(server["levels"])

    def point(
        self, placement: str, size: str, loop: str, load: float, part: str = "http"
    ) -> LoadPoint | None:
        for point in self.points(placement, size, part):
            if (point.loop, point.load) == (loop, load):
                return point
        return None

    def frame_rows(self, size: str) -> list[FrameRow]:
        rows = self.jobs.get(f"frame-{size}", {}).get("rows", ())
        return [FrameRow.of(row) for row in rows]

    def frame_row(self, size: str, batch: int) -> FrameRow | None:
        return next((row for row in self.frame_rows(size) if row.batch == batch), None)

    def predictor_ms(self, size: str, batch: int) -> float | None:
        for row in self.jobs.get(f"predictor-{size}", {}).get("rows", ()):
            if row["batch"] == batch and isinstance(row["default"], int | float):
                return row["default"]
        return None
