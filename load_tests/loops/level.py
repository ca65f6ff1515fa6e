"""One run at one load, reduced: what ladders yield and reports show."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from load_tests.loops.metrics import Summary, percentile, play, summarize
from load_tests.loops.runner import BurstLoop, Run, loop_name


@dataclass(frozen=True, slots=True)
class Level:
    """One run at one load, reduced."""

    run: Run
    summary: Summary

    @classmethod
    def of(cls, run: Run) -> "Level":
        return cls(run, summarize(run))

    @property
    def loop(self) -> str:
        return loop_name(self.run.plan)

    @property
    def bursts_p95_s(self) -> list[float]:
        """First playable audio of each burst by itself; empty where there was only one, or none.

        One that met a cold server, or compiled something, is lost in the p95 of them all.
        """
        plan = self.run.plan
        if not isinstance(plan, BurstLoop) or plan.times == 1:
            return []
        firsts = [
            result.first_playable_s if result.ok and result.first_playable_s else math.inf
            for result in self.run.results
        ]
        return [
            percentile(firsts[begin : begin + plan.size], 0.95)
            for begin in range(0, len(firsts), plan.size)
        ]

    @property
    def beside(self) -> Summary | None:
        """Of the streams that ran beside bursts."""
        return summarize(replace(self.run, results=self.run.beside)) if self.run.beside else None

    @property
    def load(self) -> str:
        """The loop and how much of it."""
        return f"{self.loop}, {self.run.plan.label}"

    def as_json(self, *, requests: bool) -> dict[str, Any]:
        """`requests` adds one entry per request."""
        data = {
            "loop": self.loop,
            "label": self.run.plan.label,
            "plan": asdict(self.run.plan),
            **asdict(self.summary),
            "bursts_p95_s": self.bursts_p95_s,
            "beside": self.beside and asdict(self.beside),
        }
        if requests:
            data["results"] = [
                {
                    "index": result.index,
                    "sent_s": result.sent_at_s - self.run.span[0],
                    "status": result.status,
                    "first_byte_s": result.first_byte_s,
                    "first_playable_s": result.first_playable_s,
                    "end_s": result.end_s,
                    "samples": result.samples,
                    "underrun_s": play(result.arrivals, result.shape).underrun_s,
                    "error": result.error,
                    "detail": result.detail,
                }
                for result in self.run.results
            ]
        return data
