"""Where the time of the closed loops goes, at each number of GPUs beside one GPU's: markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from load_tests.reports.report import table_head, table_line

# The stage whose steps are the throughput.
_TALKER: Final = "talker"
_DECODER: Final = "speech_decoder"
# What streams lie on, and what the clients' connections lie on.
_ENTRIES: Final = ("Fused", "SpeechDecoder")
_INGRESS: Final = "Ingress"
_STAGES: Final = ("fused child", "talker", "speech decoder", "code predictor")
_NAMED: Final = (*_STAGES, "ingress", "fused", "haproxy", "client")
_WAY: Final = ("client", "outside", "to stages", "stages", "talker", "decode")

Row = Mapping[str, Any]


def circumstances(facts: Row) -> list[str]:
    """Lines on the machine."""
    lines = []
    if places := facts.get("places"):
        gpus = ", ".join(f"{address} on {_node(node)}" for address, node in places["gpus"].items())
        lines.append(
            f"- {places['numa_nodes']} NUMA nodes, {places['threads_per_core']} threads a core"
            f"{f'; GPUs: {gpus}' if gpus else ''}"
        )
    if speeds := facts.get("million_ms_together"):
        said = ", ".join(f"{ms} ms in {count} processes" for count, ms in speeds)
        lines.append(f"- a million additions in Python, at once: {said}")
    return lines


def accounts(rows: Sequence[Row]) -> list[str]:
    """The tables; nothing where no row has an account."""
    closed = [row for row in rows if row.get("beside")]
    if not closed:
        return []
    ordered = sorted(closed, key=lambda row: (row["placement"], row["load"], row["gpus"]))
    return [
        *_replicas(ordered),
        *_processor(ordered),
        *_first_audio(ordered),
        *_gpus(ordered),
    ]


def _replicas(rows: Sequence[Row]) -> list[str]:
    """Streams, and what the stages made of them, by replica."""
    head = (
        *("load", "GPUs", "window s: audio-s/s of each quarter", "streams each"),
        *("from the mean; > 10 %", "talker: frames/s each", "steps/s", "streams in a step"),
        *("step ms", "decoder: step ms", "steps/s", "requests of each ingress"),
    )
    lines = [*_title("Replicas"), *table_head(head, left=2)]
    for row in rows:
        beside = row["beside"]
        streams = next((beside["requests"][n] for n in _ENTRIES if n in beside["requests"]), None)
        work = beside["work"]
        lines.append(
            table_line(
                [
                    *_key(row),
                    f"{beside['window_s']}: {_list(beside['parts_audio_s_per_s'])}",
                    _list(streams["each"]) if streams else "-",
                    f"{streams['away']}; {_percent(streams['far'])}" if streams else "-",
                    _of_each(work, _TALKER, "frames_per_s"),
                    _of_each(work, _TALKER, "steps_per_s"),
                    _of_each(work, _TALKER, "frames_per_step"),
                    _of_each(work, _TALKER, "step_ms"),
                    _of_each(work, _DECODER, "step_ms"),
                    _of_each(work, _DECODER, "steps_per_s"),
                    _range(beside["requests"].get(_INGRESS, {}).get("each", ())),
                ]
            )
        )
    return [*lines, "", *_factors(rows)]


def _factors(rows: Sequence[Row]) -> list[str]:
    """What a GPU makes of one GPU's, as the product of its steps and the streams in each."""
    lines = []
    for row in rows:
        one = next((r for r in rows if r["gpus"] == 1 and _load(r) == _load(row)), None)
        now, base = _mean_work(row), _mean_work(one) if one else None
        if row["gpus"] == 1 or now is None or base is None:
            continue
        frames, steps, streams = (after / before for after, before in zip(now, base, strict=True))
        lines.append(
            f"- {', '.join(_load(row))}, {row['gpus']} GPUs: a replica makes {_percent(frames)} of"
            f" one GPU's frames: {_percent(steps)} of its steps/s, with {_percent(streams)} of the"
            " streams in each"
        )
    return [*lines, ""]


def _mean_work(row: Row) -> tuple[float, float, float] | None:
    """Of a replica: frames/s, steps/s, frames in a step."""
    each = row["beside"]["work"].get(_TALKER, ())
    frames = sum(one["frames_per_s"] for one in each)
    steps = sum(one["steps_per_s"] for one in each)
    return (frames / len(each), steps / len(each), frames / steps) if frames and steps else None


def _processor(rows: Sequence[Row]) -> list[str]:
    """Cores by process: with its fullest threads, and for what share of time one waited for one."""
    head = (
        *("load", "GPUs", "machine busy; stolen", "a million additions, ms"),
        *("stages each: cores (threads; waited)", "ingresses", "replicas", "HAProxy", "others"),
        "clients (waited)",
    )
    lines = [*_title("Cores"), *table_head(head, left=2)]
    for row in rows:
        busy = row["beside"]["busy"] or {}
        processes = busy.get("processes", ())
        machine = busy.get("machine", {"busy": None, "stolen": None})
        by_kind = {name: [p for p in processes if p["kind"] == name] for name in _NAMED}
        others = {k: c for k, c in busy.get("by_kind", {}).items() if k not in _NAMED and c >= 0.02}
        waited = max((p["waited"] for p in by_kind["client"]), default=0.0)
        lines.append(
            table_line(
                [
                    *_key(row),
                    f"{machine['busy']}; {machine['stolen']}",
                    str(row["beside"]["million_ms"]),
                    "; ".join(_process(p) for name in _STAGES for p in by_kind[name]) or "-",
                    _range([p["cores"] for p in by_kind["ingress"]]),
                    _list([p["cores"] for p in by_kind["fused"]]),
                    _list([p["cores"] for p in by_kind["haproxy"]]),
                    ", ".join(f"{kind} {cores}" for kind, cores in others.items()) or "-",
                    f"{_range([p['cores'] for p in by_kind['client']])} ({_percent(waited)})",
                ]
            )
        )
    return [*lines, ""]


def _first_audio(rows: Sequence[Row]) -> list[str]:
    """`client` is the whole; the rest are parts of it by the server's own account."""
    head = ("load", "GPUs", *(f"{name}, ms" for name in _WAY), "client, p95 of each quarter")
    lines = [*_title("First audio, p50 / p95 (mean)"), *table_head(head, left=2)]
    for row in rows:
        found = row["beside"]["way_ms"]
        cells = ["{} / {} ({})".format(*found[name]) if name in found else "-" for name in _WAY]
        quarters = _list(row["beside"].get("parts_first_p95_ms", ()))
        lines.append(table_line([*_key(row), *cells, quarters]))
    return [
        *lines,
        "",
        "`outside`: beyond the ingress's account, that is HAProxy, connection and client; `to"
        " stages`: the ingress's beyond that of the stages, with the way to them.",
        "",
    ]


def _gpus(rows: Sequence[Row]) -> list[str]:
    if not any(row["beside"]["gpus"] for row in rows):
        return []
    head = ("load", "GPUs", "GPU", "SM MHz (least)", "W", "busy %", "C", "held down by")
    lines = [*_title("GPUs"), *table_head(head, left=2)]
    for row in rows:
        for gpu in row["beside"]["gpus"]:
            lines.append(
                table_line(
                    [
                        *_key(row),
                        str(gpu["index"]),
                        f"{gpu['sm_mhz']} ({gpu['least_sm_mhz']})",
                        *(str(gpu[name]) for name in ("power_w", "utilization", "celsius")),
                        gpu["held_down"],
                    ]
                )
            )
    return [*lines, ""]


def _title(text: str) -> list[str]:
    return [f"## {text}", ""]


def _load(row: Row) -> tuple[str, str]:
    return row["placement"], row["load"]


def _key(row: Row) -> list[str]:
    return [", ".join(_load(row)), str(row["gpus"])]


def _process(process: Row) -> str:
    threads = " ".join(f"{share:.2f}" for share in process["threads"])
    said = f"{process['cores']:.2f} ({threads}; {_percent(process['waited'])})"
    return f"{process['kind']} {said}"


def _of_each(work: Row, stage: str, name: str) -> str:
    return _list([one[name] for one in work.get(stage, ())])


def _list(values: Sequence[Any]) -> str:
    return ", ".join("-" if value is None else str(value) for value in values) or "-"


def _range(values: Sequence[float]) -> str:
    return f"{len(values)}: {min(values)} to {max(values)}" if values else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _node(number: int) -> str:
    return f"node {number}" if number >= 0 else "a node that is not known"
