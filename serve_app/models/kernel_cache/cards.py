"""Do all kernels fit a card? Compiled for it here, with what the card has as the limit."""

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

from serve_app.models.kernel_cache.absent_gpu import SHARED_BYTES, Built, absent_gpu
from serve_app.models.kernel_cache.variants import OVERLAPS


@dataclass(frozen=True, slots=True)
class Report:
    """What one group of launches came to on one card; `problems` are empty where all fit."""

    capability: int
    launches: str
    built: tuple[Built, ...]
    problems: tuple[str, ...]


def check(
    capabilities: Sequence[int], *, thorough: bool, processes: int | None = None
) -> list[Report]:
    """Compile what the stages launch for each of the cards.

    Args:
        capabilities: times ten, such as 86.
        thorough: every variant, or of each kernel the largest.
        processes: that compile at the same time; None: one per CPU.
    """
    from serve_app.models.kernel_cache.launches import LAUNCHES

    work = [(c, name, thorough) for name, c in product(LAUNCHES, capabilities)]
    # A fresh interpreter each: a fork would copy locks of this one's threads.
    context = multiprocessing.get_context("spawn")
    processes = processes or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(_check, work))


def _check(work: tuple[int, str, bool]) -> Report:
    from serve_app.models.kernel_cache.launches import LAUNCHES, How

    capability, name, thorough = work
    problems: list[str] = []
    with absent_gpu(capability) as built, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            LAUNCHES[name](How(capability >= OVERLAPS, thorough))
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}: {str(error).strip()[:200]}")
    problems += [problem for each in built if (problem := each.problem(capability))]
    return Report(capability, name, tuple(built), tuple(problems))


def table(reports: Sequence[Report]) -> str:
    """Markdown: the most that any kernel needs on each card."""
    lines = [
        "| compute capability | kernels | most shared memory | of | most registers | spilling"
        " | do not fit |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for capability in dict.fromkeys(report.capability for report in reports):
        here = [report for report in reports if report.capability == capability]
        built = [each for report in here for each in report.built]
        spilling = {f"{b.name} {b.local_bytes} B" for b in built if b.local_bytes}
        problems = [problem for report in here for problem in report.problems]
        shared = max((each.shared_bytes for each in built), default=0)
        registers = max((each.registers for each in built), default=0)
        lines.append(
            f"| {capability / 10:g} | {len(built)} | {shared} |"
            f" {SHARED_BYTES[capability]} | {registers} |"
            f" {', '.join(sorted(spilling)) or '-'} | {', '.join(problems) or '-'} |"
        )
    return "\n".join(lines)
