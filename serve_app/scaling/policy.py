"""How many replicas of each stage there shall be: a pure function of a snapshot and a memory.

All stages on GPUs get one number. Their shares add up to one GPU, so equal counts are both the
proportion in which they work and the packing that leaves no GPU half empty. The ingress follows
its own load, in steps, since each change of it reloads the proxies.

The memory is what has to outlast a tick: since when more is wanted, what was wanted lately, how
arrivals have grown. The same function decides in Serve's controller (deployments/autoscaling.py)
and in the simulator (load_tests/simulator).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from serve_app.scaling import snapshot as names
from serve_app.scaling.snapshot import Snapshot, StageLoad
from serve_app.scaling.tuning import Tuning

INGRESS: Final = "Ingress"
# Encodes recordings into voices, apart from all streams.
ENCODER: Final = "VoiceEncoder"
# Has no replica: it is there for Serve only.
FRONT: Final = "Front"
# What has a number of its own.
APART: Final = (INGRESS, ENCODER, FRONT)
_CLIPS_PER_ENCODER: Final = 4
# Where the streams are counted, the first that is there: what tells how many run and wait.
_CARRIERS: Final = ("Fused", "Talker")
# Where audio comes out: what tells arrivals, first audio and slack.
_SPEAKERS: Final = ("Fused", "SpeechDecoder")
_CAPACITY: Final = 64.0
# What was wanted is kept by its largest value in steps of so many seconds.
_STEP_S: Final = 5.0
# A node that is gone may restart, and a GCS that has just started has yet to hear of some: what has
# not been held for so long is given up.
_GONE_S: Final = 15.0
# Within this time Serve has followed a decision, or somebody else has decided.
_FOLLOW_S: Final = 180.0
# Who is refused comes again after about so long: of those who wait like that, each is refused once
# in that time. Who would have been done sooner counts for less.
_RETRY_S: Final = 1.0
# Arrivals now against arrivals so long ago are how they grow.
_TREND_S: Final = 15.0

Reason = Literal[
    "steady",  # what is there is what is wanted
    "load",  # more streams run and wait than they shall carry
    "refused",  # more would, had they not been refused
    "arrivals",  # more will, when a replica that is asked for now is ready
    "first_audio",  # first audio comes too late
    "slack",  # listeners run dry
    "kv",  # the talkers' memory is full
    "pending",  # more is wanted, and not yet for long enough
    "limit",  # more is wanted than there may be
    "idle",  # less is wanted, for long enough
    "holding",  # less is wanted, and not yet for long enough
    "changing",  # less is wanted, and replicas are starting or stopping, or do not report
    "zero",  # nobody asks
    "wake",  # somebody asks where nothing runs
    "bounds",  # the bounds have changed
]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decision leaves for the next.

    Attributes:
        wanted: (begin of a step of `_STEP_S`, most replicas needed in it), oldest first.
        arrivals: (time, arrivals per second) once a second, oldest first.
        more_since_s: since when more is wanted than there are; None: it is not.
        goal: what was decided last, at `changed_s`; None: nothing yet.
        busy_s: when there was last a stream.
        ingress: (begin of a step, ingresses wanted in it).
        encoder_busy_s: when there was last a recording to encode.
        capacity: streams of a replica, as one has last said.
        held: by deployment, (begin of a step, most replicas that nodes held in it).
    """

    wanted: tuple[tuple[float, int], ...] = ()
    arrivals: tuple[tuple[float, float], ...] = ()
    more_since_s: float | None = None
    goal: int | None = None
    changed_s: float = -math.inf
    busy_s: float | None = None
    ingress: tuple[tuple[float, int], ...] = ()
    encoder_busy_s: float | None = None
    capacity: float | None = None
    held: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """Replicas of each deployment, why, and the figures that led to it (for the log); what no
    replica has said is not among them.
    """

    targets: Mapping[str, int]
    reason: Reason
    inputs: Mapping[str, float] = field(default_factory=dict)


def decide(tuning: Tuning, memory: Memory, snapshot: Snapshot) -> tuple[Decision, Memory]:
    """The replicas that there shall be from now on."""
    memory = _seen(memory, snapshot)
    known = {name: _within(load, memory.held.get(name)) for name, load in snapshot.stages.items()}
    stages = {name: load for name, load in known.items() if name not in APART}
    targets: dict[str, int] = {}
    reason: Reason = "steady"
    inputs: dict[str, float] = {}
    if stages:
        own = known[INGRESS].total(names.REFUSED) if INGRESS in known else 0.0
        refused = _surely(own + snapshot.refused)
        count, reason, inputs, memory = _stages(tuning, memory, snapshot.at_s, stages, refused)
        targets = {name: max(load.least, min(count, load.most)) for name, load in stages.items()}
    if INGRESS in known:
        ingress = known[INGRESS]
        streams = inputs.get("streams", ingress.requests)
        targets[INGRESS], memory = _ingresses(tuning, memory, snapshot.at_s, ingress, streams)
    if ENCODER in known:
        targets[ENCODER], memory = _encoders(tuning, memory, snapshot.at_s, known[ENCODER])
    return Decision(targets, reason, inputs), memory


def _seen(memory: Memory, snapshot: Snapshot) -> Memory:
    """With what nodes hold now."""
    held = {
        name: _noted(memory.held.get(name, ()), snapshot.at_s, count, _GONE_S)
        for name, count in snapshot.holds.items()
    }
    return replace(memory, held=held)


def _within(load: StageLoad, held: tuple[tuple[float, int], ...] | None) -> StageLoad:
    """A deployment's bounds within what nodes hold, or have held a moment ago.

    One replica is asked for whatever they seem to hold: a wrong look would be the end of it.
    """
    if held is None:
        return load
    most = min(load.most, max(1, *(count for _, count in held)))
    return replace(load, most=max(load.least, most))


def _encoders(tuning: Tuning, memory: Memory, now_s: float, load: StageLoad) -> tuple[int, Memory]:
    """One at least while there is a recording, and until there has been none for a while."""
    if load.requests:
        memory = replace(memory, encoder_busy_s=now_s)
    busy_s = memory.encoder_busy_s
    is_resting = busy_s is None or now_s - busy_s >= tuning.zero_after_s
    wanted = math.ceil(load.requests / _CLIPS_PER_ENCODER)
    count = 0 if is_resting else max(wanted, load.target)
    return max(load.least, min(count, load.most)), memory


def _stages(
    tuning: Tuning,
    memory: Memory,
    now_s: float,
    stages: Mapping[str, StageLoad],
    refused: float,
) -> tuple[int, Reason, dict[str, float], Memory]:
    carrier, speaker = _first(stages, _CARRIERS), _first(stages, _SPEAKERS)
    least = max(load.least for load in stages.values())
    most = max(least, min(load.most for load in stages.values()))
    target = max(load.target for load in stages.values())
    if memory.goal is not None and now_s - memory.changed_s <= _FOLLOW_S:
        target = memory.goal
    ready = min(load.ready for load in stages.values())
    # Where none runs, what wakes up will carry as many as what went to sleep.
    capacity = carrier.worst(names.CAPACITY, low=True) or memory.capacity or _CAPACITY
    memory = replace(memory, capacity=capacity)
    # Serve sees what waits where nothing runs yet, the engines what has only just begun to wait.
    streams = max(
        carrier.total(names.RUNNING) + carrier.total(names.WAITING),
        speaker.requests,
        carrier.requests,
    )
    arrivals = _surely(speaker.total(names.ARRIVALS))
    service_s = speaker.worst(names.SERVICE) or 0.0
    coming = arrivals * service_s
    memory, growth = _grown(tuning, memory, now_s, arrivals)
    places = capacity * ready
    if service_s and 2 * places < streams <= places * (1 + tuning.start_s / service_s):
        # Who waits has a place before another replica could run, however many have piled up while
        # none did. What comes at present counts, and that all places are taken.
        streams = max(coming, places)
    by_load = math.ceil(streams / (capacity * tuning.up_share))
    outside = refused * min(service_s, _RETRY_S)
    by_refused = math.ceil((streams + outside) / (capacity * tuning.up_share))
    by_arrivals = math.ceil(coming * growth / (capacity * tuning.up_share))
    # What the others would have to carry if one was given back: with less room than is asked for
    # when growing, or a stream more or less would start and stop replicas all the time.
    keep = math.ceil(max(streams + outside, coming) / (capacity * tuning.down_share))
    want = by_load
    cause: Reason = "load"
    if by_refused > want:
        want, cause = by_refused, "refused"
    if by_arrivals > want:
        want, cause = by_arrivals, "arrivals"
    pressed = _pressure(tuning, carrier, speaker)
    if pressed and target:
        reach = _reach(tuning, pressed, streams, capacity, want)
        is_settled = ready >= target and now_s - memory.changed_s >= tuning.press_every_s
        keep = max(keep, min(target, reach))
        if is_settled and want <= target < reach:
            want, cause = target + 1, pressed
            keep = max(keep, want)
    if target and not ready:
        # Everybody waits, whatever it was that they came for; what they will need shows when
        # somebody is served again.
        want = keep = min(want, target)
    is_busy = streams > 0 or speaker.total(names.ARRIVALS) > 0
    memory = replace(memory, busy_s=now_s if is_busy or memory.busy_s is None else memory.busy_s)
    known: dict[str, float | None] = {
        "streams": round(streams, 2),
        "running": round(carrier.total(names.RUNNING), 2),
        "waiting": round(carrier.total(names.WAITING), 2),
        "capacity": capacity,
        "arrivals_per_s": round(arrivals, 3),
        "refused_per_s": round(refused, 3),
        "growth": round(growth, 3),
        "service_s": round(service_s, 3),
        "first_audio_p95_s": _rounded(speaker.worst(names.FIRST_AUDIO), 4),
        "slack_p05_s": _rounded(speaker.worst(names.SLACK, low=True), 3),
        "kv": _rounded(carrier.worst(names.KV), 4),
        "want": want,
        "target": target,
        "ready": ready,
        "most": most,
    }
    inputs = {name: value for name, value in known.items() if value is not None}
    spare = tuning.spare if is_busy or least else 0
    count, said, memory = _moved(
        tuning, memory, now_s, want + spare, keep + spare, target, least, most, stages
    )
    return count, cause if said == "load" else said, inputs, memory


def _moved(
    tuning: Tuning,
    memory: Memory,
    now_s: float,
    want: int,
    keep: int,
    target: int,
    least: int,
    most: int,
    stages: Mapping[str, StageLoad],
) -> tuple[int, Reason, Memory]:
    """How far to go from `target` towards `want` now."""
    memory = replace(
        memory, wanted=_noted(memory.wanted, now_s, max(want, keep), tuning.down_after_s)
    )
    bounded = max(least, min(want, most))
    if not least <= target <= most:
        return _changed(memory, now_s, max(least, min(target, most)), "bounds")
    if bounded > target:
        since_s = now_s if memory.more_since_s is None else memory.more_since_s
        memory = replace(memory, more_since_s=since_s)
        if target == 0:
            return _changed(memory, now_s, bounded, "wake")
        waited = now_s - since_s >= tuning.up_after_s
        if not waited or now_s - memory.changed_s < tuning.up_every_s:
            return target, "pending", memory
        reach = max(target + 1, math.floor(target * tuning.up_factor))
        return _changed(memory, now_s, min(bounded, reach), "load")
    memory = replace(memory, more_since_s=None)
    if want > target:
        return target, "limit", memory
    if target == 0:
        return 0, "zero", memory
    idle_s = now_s - (memory.busy_s if memory.busy_s is not None else now_s)
    if least == 0 and want == 0 and idle_s >= tuning.zero_after_s:
        return _changed(memory, now_s, 0, "zero")
    floor = max(*(kept for _, kept in memory.wanted), least, 1)
    if floor >= target:
        return target, "steady" if want == target else "holding", memory
    is_changing = any(
        load.ready != load.target or len(load.reports) < load.ready for load in stages.values()
    )
    there = max(floor, min(load.ready for load in stages.values()))
    if is_changing and there < target and now_s - memory.changed_s > _FOLLOW_S:
        # No node holds them, or they cannot start. Serve stops those first that do not run.
        return _changed(memory, now_s, there, "idle")
    if is_changing:
        return target, "changing", memory
    is_soon = now_s - memory.changed_s < tuning.down_every_s
    if is_soon or now_s - memory.wanted[0][0] < tuning.down_after_s - _STEP_S:
        return target, "holding", memory
    part = max(1, math.floor(target * tuning.down_part))
    return _changed(memory, now_s, max(floor, target - part), "idle")


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _pressure(tuning: Tuning, carrier: StageLoad, speaker: StageLoad) -> Reason | None:
    """What streams suffer from already, whatever their number."""
    first_s = speaker.worst(names.FIRST_AUDIO)
    slack_s = speaker.worst(names.SLACK, low=True)
    kv = carrier.worst(names.KV)
    if first_s is not None and first_s > tuning.first_audio_s:
        return "first_audio"
    if slack_s is not None and slack_s < tuning.slack_s:
        return "slack"
    if kv is not None and kv > tuning.kv_share:
        return "kv"
    return None


def _reach(tuning: Tuning, pressed: Reason, streams: float, capacity: float, want: int) -> int:
    """Up to how many replicas more of them help what streams suffer from."""
    reach = math.floor(streams / (capacity * tuning.press_share)) + 1
    if pressed == "kv":
        return reach
    # A stream that has a replica to itself is late for another reason; and so may the others be.
    late = max(want + 1, math.floor(want * tuning.press_factor))
    return min(reach, math.floor(streams), late)


def _grown(tuning: Tuning, memory: Memory, now_s: float, arrivals: float) -> tuple[Memory, float]:
    """How many times the arrivals of now there will be when a replica has started."""
    kept = memory.arrivals
    if not kept or now_s - kept[-1][0] >= 1.0:
        kept = tuple(pair for pair in kept if now_s - pair[0] <= _TREND_S)
        kept = (*kept, (now_s, arrivals))
    begin_s, before = kept[0]
    growth = 1.0
    # Two counts differ by chance as well; so far apart they do in one of twenty cases.
    chance = 2 * math.sqrt((arrivals + before) / names.WINDOW_S)
    if arrivals - before > chance and before > 0 and now_s - begin_s >= _TREND_S / 2:
        growth += (arrivals - before) / arrivals * tuning.start_s / (now_s - begin_s)
    return replace(memory, arrivals=kept), min(growth, tuning.growth_limit)


def _surely(arrivals: float) -> float:
    """Arrivals per second without what may be chance in the few seconds that they are counted in.

    Two requests in ten seconds where there was one are no load that has doubled.
    """
    count = arrivals * names.WINDOW_S
    return max(0.0, count - math.sqrt(count)) / names.WINDOW_S


def _ingresses(
    tuning: Tuning, memory: Memory, now_s: float, load: StageLoad, streams: float
) -> tuple[int, Memory]:
    """1, 2, 4, 8 ... ingresses, as many as so many streams keep busy."""
    need = max(1, math.ceil(max(streams, load.requests) / tuning.streams_per_ingress))
    want = 1 << (need - 1).bit_length()
    kept = _noted(memory.ingress, now_s, want, tuning.ingress_down_after_s)
    memory = replace(memory, ingress=kept)
    lately = max(wanted for _, wanted in kept)
    is_known = now_s - kept[0][0] >= tuning.ingress_down_after_s - _STEP_S
    count = max(want, min(load.target, lately) if is_known else load.target)
    return max(load.least, min(count, load.most)), memory


def _noted(
    kept: tuple[tuple[float, int], ...], now_s: float, want: int, span_s: float
) -> tuple[tuple[float, int], ...]:
    """`kept` with what is wanted now, without what is older than `span_s`."""
    if kept and now_s - kept[-1][0] < _STEP_S:
        begin_s, most = kept[-1]
        if want <= most:
            return kept
        return (*kept[:-1], (begin_s, want))
    return (*(pair for pair in kept if now_s - pair[0] <= span_s), (now_s, want))


def _changed(memory: Memory, now_s: float, goal: int, reason: Reason) -> tuple[int, Reason, Memory]:
    return goal, reason, replace(memory, goal=goal, changed_s=now_s, more_since_s=None)


def _first(stages: Mapping[str, StageLoad], order: tuple[str, ...]) -> StageLoad:
    found = next((stages[name] for name in order if name in stages), None)
    return found if found is not None else next(iter(stages.values()))
