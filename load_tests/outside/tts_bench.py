"""`tts_bench` of nari-labs/benchmarks against a running server, and our own client right after it.

It is not on PyPI and wants Python 3.12; README says how to get it. It sends Poisson arrivals, as
`python -m load_tests open` does, so that both should see the same.
"""

import json
import math
import os
import subprocess
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from load_tests.loops.client import AudioShape, RequestResult, SpeechClient
from load_tests.loops.metrics import percentile, play
from load_tests.loops.runner import OpenLoop, run_loop, run_open
from load_tests.loops.workload import TEXTS, Workload
from load_tests.servers.child import say

# The oldest of its targets speaks OpenAI's endpoint without anything of its own.
_TARGET: Final = "nari"
_GRACE_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one client saw; times in ms, p50, p95 and p99, nan where there was none."""

    requests: int
    complete: int
    first_byte_ms: tuple[float, float, float]
    first_playable_ms: tuple[float, float, float]
    first_audible_ms: tuple[float, float, float]
    end_to_end_ms: tuple[float, float, float]
    underruns: int
    lag_ms: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Load:
    """The same for both: requests per second, seconds that are measured and that are not."""

    url: str
    model: str
    voice: str
    rate_hz: float
    duration_s: float
    warm_up_s: float
    seed: int = 0


def model_of(url: str) -> str:
    """The first model that the server lists."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/v1/models", timeout=30) as answer:
        return json.load(answer)["data"][0]["id"]


def theirs(load: Load, python: Path, source: Path, folder: Path) -> Figures:
    """Run it, its files below `folder`.

    Raises:
        subprocess.CalledProcessError: it failed; what it said was printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    rows = ({"id": str(number), "text": text} for number, text in enumerate(TEXTS))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = folder / f"rps-{load.rate_hz:g}"
    options = {
        "--target": _TARGET,
        "--base-url": load.url,
        "--model": load.model,
        "--voice": load.voice,
        "--dataset": str(prompts),
        "--rps": f"{load.rate_hz:g}",
        "--warmup": f"{load.warm_up_s:g}s",
        "--duration": f"{load.duration_s:g}s",
        "--seed": str(load.seed),
        "--output": str(out),
    }
    command = [str(python), "-m", "tts_bench", "run"]
    command += [word for option in options.items() for word in option]
    # Its packages may be where this process was told to look for others.
    path = filter(None, (str(source), os.environ.get("PYTHONPATH")))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=load.warm_up_s + load.duration_s + _GRACE_S,
        check=False,
    )
    summary = out / "summary.json"
    if not summary.exists():
        say(done.stdout + done.stderr)
        done.check_returncode()
    return figures_of_summary(json.loads(summary.read_text(encoding="utf-8")))


def figures_of_summary(summary: Mapping[str, Any]) -> Figures:
    """From its summary.json."""

    def three(name: str) -> tuple[float, float, float]:
        found = summary[name]
        p50, p95, p99 = (float("nan") if found[q] is None else found[q] for q in _QUANTILES)
        return p50, p95, p99

    return Figures(
        requests=summary["scheduled_requests"],
        complete=summary["audio_successful_requests"],
        first_byte_ms=three("ttfb_ms"),
        first_playable_ms=three("first_playable_ms"),
        first_audible_ms=three("audible_ttfa_ms"),
        end_to_end_ms=three("end_to_end_ms"),
        underruns=summary["underrun_requests"],
        lag_ms=three("scheduling_lag_ms"),
    )


_QUANTILES: Final = ("p50", "p95", "p99")


def ours(load: Load) -> Figures:
    """The same load from `load_tests.loops`."""
    workload = Workload(
        voice=load.voice, model=load.model, min_frames=None, max_frames=None, seed=load.seed
    )
    plan = OpenLoop(load.rate_hz, load.duration_s, load.warm_up_s, load.seed)

    async def run() -> list[RequestResult]:
        async with SpeechClient(load.url, AudioShape()) as client:
            return list((await run_open(client, workload, plan)).results)

    return figures_of_results(run_loop(run))


def figures_of_results(results: list[RequestResult]) -> Figures:
    complete = [result for result in results if result.ok]

    def three(values: list[float | None]) -> tuple[float, float, float]:
        there = sorted(1000 * value for value in values if value is not None)
        if not there:
            return math.nan, math.nan, math.nan
        return percentile(there, 0.5), percentile(there, 0.95), percentile(there, 0.99)

    return Figures(
        requests=len(results),
        complete=len(complete),
        first_byte_ms=three([result.first_byte_s for result in complete]),
        first_playable_ms=three([result.first_playable_s for result in complete]),
        first_audible_ms=three([result.first_audible_s for result in complete]),
        end_to_end_ms=three([result.end_s for result in complete]),
        underruns=sum(play(r.arrivals, r.shape).underrun_s > 0.001 for r in complete),
        lag_ms=three([result.lag_s for result in results]),
    )


def as_json(load: Load, both: Mapping[str, Figures]) -> dict[str, Any]:
    return {"load": asdict(load), "clients": {name: asdict(f) for name, f in both.items()}}
