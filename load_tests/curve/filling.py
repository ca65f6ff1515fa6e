"""What fills up with the number of GPUs, and which would be full next: markdown.

Each GPU has its own processes of the stages; HAProxy, controller, ingresses, clients and cores are
for all of them. What these take is a line over the number of GPUs, so it can be said where it ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from load_tests.reports.report import table_head, table_line

# One of each per GPU; each is one Python interpreter, of which one thread at a time runs.
_OF_A_GPU: Final = {
    "fused child": "process of the stages",
    "talker": "talker",
    "speech decoder": "speech decoder",
    "code predictor": "code predictor",
    "fused": "replica of the process",
}
# For all GPUs, in one interpreter each or, where they are none, as full as their fullest thread.
_SHARED: Final = {
    "ingress": "fullest ingress",
    "haproxy": "HAProxy",
    "controller": "controller",
    "proxy": "Serve's proxy",
    "gcs": "GCS",
    "raylet": "raylet",
    "client": "fullest client",
}
_BY_THREAD: Final = ("gcs", "raylet")
# As Ray starts it, unless RAY_SERVE_HAPROXY_NBTHREAD says otherwise.
_HAPROXY_THREADS: Final = 4
_MACHINE: Final = "machine's cores"
# From here on something is called full: nothing is ever measured at more than a little over 1.
_FULL: Final = 0.9

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fill:
    """How full each thing was under one load: 1.0 can do no more.

    cores: of all processes of the server. clients: cores of the clients.
    """

    gpus: int
    cores: float
    clients: float
    own: dict[str, float]
    shared: dict[str, float]


def fill_of(row: Row, cpus: int) -> Fill | None:
    """None where the row has no account of processes."""
    busy = (row.get("beside") or {}).get("busy")
    if not busy or not busy["processes"]:
        return None
    fullest: dict[str, float] = {}
    for process in busy["processes"]:
        share = _share(process)
        fullest[process["kind"]] = max(fullest.get(process["kind"], 0.0), share)
    clients = busy["by_kind"].get("client", 0.0)
    return Fill(
        row["gpus"],
        busy["cores"] - clients,
        clients,
        {name: fullest[kind] for kind, name in _OF_A_GPU.items() if kind in fullest},
        {
            **{name: fullest[kind] for kind, name in _SHARED.items() if kind in fullest},
            _MACHINE: busy["machine"]["busy"] / cpus,
        },
    )


def _share(process: Row) -> float:
    thread = process["threads"][0] if process["threads"] else 0.0
    if process["kind"] == "haproxy":
        return max(process["cores"] / _HAPROXY_THREADS, thread)
    return thread if process["kind"] in _BY_THREAD else process["cores"]


def full_at(fills: Sequence[Fill], name: str) -> float | None:
    """The GPUs with which a shared thing is full, by the line through the fewest and the most that
    were measured, or through nothing where there is one; None where it does not grow.
    """
    points = [(fill.gpus, fill.shared[name]) for fill in fills if name in fill.shared]
    if not points:
        return None
    (low, at_low), (high, at_high) = min(points), max(points)
    slope = (at_high - at_low) / (high - low) if high > low else at_high / high
    return high + (1.0 - at_high) / slope if slope > 1e-6 else None


def report(rows: Sequence[Row], cpus: int) -> list[str]:
    """A table of what was how full, and for each load what comes next."""
    found: dict[tuple[str, str], list[Fill]] = {}
    for row in rows:
        fill = fill_of(row, cpus)
        if fill is not None:
            found.setdefault((row["placement"], row["load"]), []).append(fill)
    if not found:
        return []
    every = [fill for fills in found.values() for fill in fills]
    own = [name for name in _OF_A_GPU.values() if any(name in fill.own for fill in every)]
    shared = [n for n in (*_SHARED.values(), _MACHINE) if any(n in f.shared for f in every)]
    head = ("load", "GPUs", "server's cores", "a GPU", "clients' cores", *own, *shared)
    lines = ["## What fills up", "", *table_head(head, left=2)]
    for (placement, load), fills in sorted(found.items()):
        for fill in sorted(fills, key=lambda fill: fill.gpus):
            lines.append(
                table_line(
                    [
                        *(f"{placement}, {load}", str(fill.gpus), f"{fill.cores:.1f}"),
                        *(f"{fill.cores / fill.gpus:.1f}", f"{fill.clients:.1f}"),
                        *(_percent(fill.own.get(name)) for name in own),
                        *(_percent(fill.shared.get(name)) for name in shared),
                    ]
                )
            )
    lines += [
        "",
        "Of a Python process one interpreter is 100 %, of HAProxy its four threads or the fullest"
        " of them, of GCS and raylet the fullest thread.",
        "",
    ]
    lines += [_next(name, fills) for name, fills in sorted(found.items())]
    return [*lines, ""]


def _next(load: tuple[str, str], fills: Sequence[Fill]) -> str:
    most = max(fills, key=lambda fill: fill.gpus)
    everything = {**most.own, **most.shared}
    first = max(everything, key=lambda name: everything[name])
    whose = "each GPU has its own" if first in most.own else "for all GPUs"
    said = "full" if everything[first] >= _FULL else "fullest"
    ends = {name: full_at(fills, name) for name in most.shared}
    ordered = sorted((n for n in ends if ends[n] is not None), key=lambda n: ends[n] or 0.0)
    then = ", ".join(f"{name} with {ends[name]:.0f}" for name in ordered)
    return (
        f"- {', '.join(load)}, {gpus_text(most.gpus)}: {said} first is the {first}"
        f" ({_percent(everything[first])}; {whose}). Of what all GPUs share, by the line through"
        f" {' and '.join(str(n) for n in sorted({min(f.gpus for f in fills), most.gpus}))}"
        f" GPUs, full: {then or 'nothing, since nothing grows'}"
    )


def gpus_text(count: int) -> str:
    return "one GPU" if count == 1 else f"{count} GPUs"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
