"""One run at one load, reduced: what ladders yield and reports show."""

from dataclasses import asdict, dataclass
from typing import Any

from load_tests.loops.metrics import Summary, play, summarize
from load_tests.loops.runner import ClosedLoop, Run


@dataclass(frozen=True, slots=True)
class Level:
    """One run at one load, reduced."""

    run: Run
    summary: Summary

    @classmethod
    def of(cls, run: Run) -> "Level":
        return cls(run, summarize(run))

    @property
    def is_closed(self) -> bool:
        return isinstance(self.run.plan, ClosedLoop)

    @property
    def load(self) -> str:
        """The loop and how much of it."""
        return f"{'closed' if self.is_closed else 'open'}, {self.run.plan.label}"

    def as_json(self, *, requests: bool) -> dict[str, Any]:
        """`requests` adds one entry per request."""
        data = {
            "loop": "closed" if self.is_closed else "open",
            "label": self.run.plan.label,
            "plan": asdict(self.run.plan),
            **asdict(self.summary),
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
