"""`tts_bench` of nari-labs/benchmarks against a running server, and our own client right after it.

It is not on PyPI; README says how to get it. It sends Poisson arrivals, as `python -m load_tests
open` does, so that both should see the same.
"""

import json
import math
import os
import shutil
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
from load_tests.servers.child import say, search_path

# The oldest of its targets speaks OpenAI's endpoint without anything of its own.
_TARGET: Final = "nari"
_GRACE_S: Final = 180.0
# Its own bounds of a success: the longest silence within a stream, and all of it.
_STALL_S: Final = 0.5
_STALLS_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one client saw; times in ms, p50, p95 and p99, nan where there was none.

    stalled: complete streams that tts_bench calls no success, for silence at once or in all.
    """

    requests: int
    complete: int
    stalled: int
    first_byte_ms: tuple[float, float, float]
    first_playable_ms: tuple[float, float, float]
    first_audible_ms: tuple[float, float, float]
    end_to_end_ms: tuple[float, float, float]
    underruns: int
    lag_ms: tuple[float, float, float]


class OutsideFailed(Exception):
    """Another's client cannot be run, or did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Load:
    """The same for both: requests per second, seconds that are measured and that are not.

    frames: codec frames that each request is forced to; None: the model decides.
    """

    url: str
    model: str
    voice: str
    rate_hz: float
    duration_s: float
    warm_up_s: float
    seed: int = 0
    frames: int | None = None


def check(python: Path, source: Path) -> None:
    """Have `python` import it from `source`, before any load is put on a server.

    Raises:
        OutsideFailed: it cannot, and what is missing.
    """
    if not (source / "tts_bench").is_dir():
        raise OutsideFailed(
            f"no package tts_bench in {source}; it is in tts_bench/src of its repository"
        )
    command = [str(python), "-c", "import tts_bench.cli"]
    try:
        done = subprocess.run(
            command, env=_environment(source), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise OutsideFailed(f"{python} cannot be run: {error}") from error
    if done.returncode:
        (*_, reason) = done.stderr.strip().splitlines() or ["no reason given"]
        raise OutsideFailed(
            f"{python} cannot import tts_bench: {reason} (README: a virtual environment for it, or"
            " PYTHONPATH with aiohttp, click, jiwer, numpy, pydantic and whisper_normalizer)"
        )


def _environment(source: Path) -> dict[str, str]:
    """Its packages may be where this process was told to look for others."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(source.resolve()), search_path()))}


def model_of(url: str) -> str:
    """The first model that the server lists."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/v1/models", timeout=30) as answer:
        return json.load(answer)["data"][0]["id"]


def theirs(load: Load, python: Path, source: Path, folder: Path) -> Figures:
    """Run it, its files below `folder`, in place of those of an earlier run.

    Raises:
        OutsideFailed: it failed; what it said was printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    rows = ({"id": str(number), "text": text} for number, text in enumerate(TEXTS))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = folder / f"rps-{load.rate_hz:g}"
    # It refuses to write where something is.
    shutil.rmtree(out, ignore_errors=True)
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
    if load.frames is not None:
        for name in ("min_new_tokens", "max_new_tokens"):
            command += ["--request-param", f"{name}={load.frames}"]
    within_s = load.warm_up_s + load.duration_s + _GRACE_S
    try:
        done = subprocess.run(
            command,
            env=_environment(source),
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OutsideFailed(f"tts_bench did not end within {within_s:.0f} s") from error
    if done.returncode:
        say(done.stdout + done.stderr)
        raise OutsideFailed(f"tts_bench ended with {done.returncode}")
    return figures_of_summary(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def figures_of_summary(summary: Mapping[str, Any]) -> Figures:
    """From its summary.json."""

    def three(name: str) -> tuple[float, float, float]:
        found = summary[name]
        p50, p95, p99 = (float("nan") if found[q] is None else found[q] for q in _QUANTILES)
        return p50, p95, p99

    return Figures(
        requests=summary["scheduled_requests"],
        complete=summary["pcm_complete_requests"],
        stalled=summary["pcm_complete_requests"] - summary["audio_successful_requests"],
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
        voice=load.voice,
        model=load.model,
        min_frames=load.frames,
        max_frames=load.frames,
        seed=load.seed,
    )
    plan = OpenLoop(load.rate_hz, load.duration_s, load.warm_up_s, load.seed)

    async def run() -> list[RequestResult]:
        async with SpeechClient(load.url, AudioShape()) as client:
            return list((await run_open(client, workload, plan)).results)

    return figures_of_results(run_loop(run))


def figures_of_results(results: list[RequestResult]) -> Figures:
    complete = [result for result in results if result.ok]
    plays = [play(result.arrivals, result.shape) for result in complete]

    def three(values: list[float | None]) -> tuple[float, float, float]:
        there = sorted(1000 * value for value in values if value is not None)
        if not there:
            return math.nan, math.nan, math.nan
        return percentile(there, 0.5), percentile(there, 0.95), percentile(there, 0.99)

    return Figures(
        requests=len(results),
        complete=len(complete),
        stalled=sum(
            played.longest_stall_s > _STALL_S or played.underrun_s > _STALLS_S for played in plays
        ),
        first_byte_ms=three([result.first_byte_s for result in complete]),
        first_playable_ms=three([result.first_playable_s for result in complete]),
        first_audible_ms=three([result.first_audible_s for result in complete]),
        end_to_end_ms=three([result.end_s for result in complete]),
        underruns=sum(bool(p.num_stalls) for p in plays),
        lag_ms=three([result.lag_s for result in results]),
    )


def as_json(load: Load, both: Mapping[str, Figures]) -> dict[str, Any]:
    return {"load": asdict(load), "clients": {name: asdict(f) for name, f in both.items()}}
