"""The policy, driven tick by tick with the replicas that it asks for."""

import itertools
from dataclasses import dataclass, field

import pytest

from serve_app.scaling.policy import Decision, Memory, decide
from serve_app.scaling.snapshot import Snapshot, StageLoad
from serve_app.scaling.tuning import Tuning

STAGES = ("SpeechDecoder", "Talker", "CodePredictor")


@dataclass
class Application:
    """Deployments that follow what is decided, each replica `start_s` later."""

    tuning: Tuning = field(default_factory=Tuning)
    least: int = 1
    most: int = 8
    capacity: float = 64.0
    start_s: float = 10.0
    names: tuple[str, ...] = STAGES
    # Replicas that there is room for; None: for all that are asked for.
    holds: int | None = None
    # Whether the policy is told how many these are.
    is_seen: bool = False
    at_s: float = 1000.0
    memory: Memory = field(default_factory=Memory)
    ready: dict[str, list[float]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready = {name: [0.0] * self.least for name in self.names}

    def tick(self, streams: float, **report: float) -> Decision:
        stages = {}
        for name, since in self.ready.items():
            running = sum(at_s <= self.at_s for at_s in since[: self.holds])
            share = {**report, "capacity": self.capacity, "running": streams / max(1, running)}
            stages[name] = StageLoad(
                running, len(since), self.least, self.most, streams, (share,) * running
            )
        holds = dict.fromkeys(self.names, self.holds or 0) if self.is_seen else {}
        snapshot = Snapshot(self.at_s, stages, holds)
        assert Snapshot.of_line(snapshot.line()) == snapshot
        decision, self.memory = decide(self.tuning, self.memory, snapshot)
        for name, count in decision.targets.items():
            there = self.ready[name]
            self.ready[name] = (there + [self.at_s + self.start_s] * count)[:count]
        self.reasons.append(decision.reason)
        self.at_s += 1.0
        return decision

    @property
    def ready_count(self) -> int:
        return sum(at_s <= self.at_s for at_s in self.ready[self.names[0]])

    def run(self, seconds: int, streams: float, **report: float) -> list[int]:
        """Targets of the first stage, tick by tick."""
        return [self.tick(streams, **report).targets[self.names[0]] for _ in range(seconds)]


def test_all_stages_are_kept_at_one_number() -> None:
    application = Application()
    for streams in (0, 10, 200, 500, 300, 20):
        for _ in range(60):
            assert len(set(application.tick(streams).targets.values())) == 1


def test_a_step_of_load_is_met_within_seconds() -> None:
    targets = Application().run(10, 300)
    assert targets[-1] == 7  # 300 streams at three quarters of 64


def test_more_is_asked_for_by_doubling_at_most() -> None:
    targets = Application(most=64).run(12, 2000)
    assert all(after <= 2 * before for before, after in itertools.pairwise(targets))
    assert targets[-1] == 42


def test_a_moment_of_load_starts_nothing() -> None:
    application = Application()
    application.run(5, 10)
    application.tick(300)
    assert application.run(20, 10)[-1] == 1


def test_replicas_are_given_back_one_after_the_other_and_late() -> None:
    application = Application()
    application.run(60, 300)
    targets = application.run(290, 10)
    assert targets[-1] >= 6
    targets = application.run(600, 10)
    assert targets[-1] == 1
    assert all(before - after <= 1 for before, after in itertools.pairwise(targets))
    assert "idle" in application.reasons


def test_load_that_goes_up_and_down_keeps_its_replicas() -> None:
    application = Application()
    for _ in range(10):
        application.run(60, 300)
        targets = application.run(60, 20)
        assert set(targets) == {7}


def test_no_more_is_asked_for_than_the_cluster_holds() -> None:
    application = Application(most=3)
    assert max(application.run(60, 5000)) == 3
    assert application.reasons[-1] == "limit"


def test_bounds_that_shrink_are_obeyed() -> None:
    application = Application(most=8)
    application.run(30, 300)
    application.most = 2
    assert application.tick(300).targets["Talker"] == 2
    assert application.reasons[-1] == "bounds"


def test_nothing_is_given_back_while_a_replica_does_not_report() -> None:
    application = Application()
    application.run(60, 300)
    stages = {name: StageLoad(7, 7, 1, 8, 5.0, ({"capacity": 64.0},) * 6) for name in STAGES}
    for _ in range(600):
        snapshot = Snapshot(application.at_s, stages)
        decision, application.memory = decide(application.tuning, application.memory, snapshot)
        application.at_s += 1.0
    assert decision.targets["Talker"] == 7
    assert decision.reason == "changing"


def test_what_never_comes_is_given_back_when_it_is_not_needed_any_more() -> None:
    """Of a cluster that holds less than `max_replicas`, Serve waits for the rest for ever."""
    application = Application(holds=3)
    assert application.run(100, 300)[-1] == 7
    targets = application.run(500, 130)
    assert targets[200] == 7
    assert targets[-1] == 3
    assert application.run(600, 5)[-1] == 1


def test_what_nodes_hold_is_asked_for_when_they_are_there_and_nothing_in_vain() -> None:
    application = Application(holds=1, is_seen=True)
    assert max(application.run(100, 300)) == 1
    assert application.reasons[-1] == "limit"
    application.holds = 3
    targets = application.run(10, 300)
    assert (targets[-1], max(targets)) == (3, 3)
    assert set(application.run(100, 300)) == {3}


def test_what_a_lost_node_held_is_given_up_after_a_moment_and_asked_for_when_it_is_back() -> None:
    application = Application(holds=3, is_seen=True)
    application.run(100, 300)
    application.holds = 2
    # It may only have restarted.
    assert set(application.run(10, 300)) == {3}
    assert application.run(15, 300)[-1] == 2
    assert "bounds" in application.reasons
    application.holds = 3
    assert application.run(5, 300)[-1] == 3


def test_a_moment_without_any_node_takes_nothing_away() -> None:
    """A GCS that has just started has yet to hear of its nodes."""
    application = Application(holds=3, is_seen=True)
    application.run(100, 300)
    application.holds = 0
    application.run(8, 300)
    application.holds = 3
    assert set(application.run(60, 300)) == {3}


def test_one_replica_is_asked_for_whatever_nodes_seem_to_hold() -> None:
    application = Application(holds=0, is_seen=True)
    assert set(application.run(60, 300)) == {1}
    application = Application(least=2, holds=1, is_seen=True)
    assert set(application.run(60, 300)) == {2}


def test_replicas_that_there_are_at_least_are_waited_for_without_a_change() -> None:
    """A node is lost, and comes back: Serve would ask for them whatever is decided."""
    application = Application(least=3, holds=3, is_seen=True)
    application.run(60, 100)
    for holds, streams in ((2, 100), (1, 400), (1, 0), (3, 100)):
        application.holds = holds
        assert set(application.run(400, streams)) == {3}
        assert "bounds" not in application.reasons
    application.holds = 5
    assert max(application.run(60, 400)) == 5


def test_no_more_ingresses_are_asked_for_than_nodes_hold() -> None:
    memory, count = Memory(), 1
    for second in range(60):
        load = {"Ingress": StageLoad(1, count, 1, 8, 300)}
        decision, memory = decide(Tuning(), memory, Snapshot(float(second), load, {"Ingress": 2}))
        count = decision.targets["Ingress"]
    assert count == 2


def test_a_replica_that_starts_slowly_is_waited_for() -> None:
    application = Application(start_s=250.0)
    assert application.run(100, 300)[-1] == 7
    assert min(application.run(290, 5)) == 7


def test_arrivals_that_grow_are_met_before_their_streams_are_there() -> None:
    slow, quick = Application(), Application()
    for step in range(30):
        arrivals = 1.0 + step
        slow.tick(arrivals)
        quick.tick(arrivals, arrivals_per_s=arrivals / max(1, quick.ready_count), service_s=5.0)
    assert len(quick.ready[STAGES[0]]) > len(slow.ready[STAGES[0]])


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"first_audio_p95_s": 3.0}, "first_audio"),
        ({"slack_p05_s": -0.5}, "slack"),
        ({"kv_cache_usage": 0.97}, "kv"),
    ],
)
def test_streams_that_suffer_get_a_replica_whatever_their_number(
    report: dict[str, float], reason: str
) -> None:
    application = Application()
    application.run(5, 30)
    targets = application.run(40, 30, **report)
    assert targets[0] == 1
    assert 2 <= targets[-1] <= 3
    assert reason in application.reasons


def test_late_audio_of_few_streams_has_another_cause() -> None:
    application = Application()
    assert application.run(100, 2, first_audio_p95_s=9.0)[-1] == 1


@pytest.mark.parametrize(
    ("capacity", "streams", "on_time", "late"),
    [(1, 1, 2, 2), (1, 2, 3, 3), (2, 1, 1, 1), (2, 2, 2, 2), (4, 3, 1, 2), (4, 20, 7, 10)],
)
def test_late_audio_adds_half_as_many_as_the_load_calls_for_and_none_without_a_stream(
    capacity: int, streams: int, on_time: int, late: int
) -> None:
    """Where a machine is what is slow, no number of replicas would make it faster."""
    report = {"first_audio_p95_s": 9.0, "slack_p05_s": -3.0}
    assert Application(capacity=capacity, most=32).run(400, streams)[-1] == on_time
    assert Application(capacity=capacity, most=32).run(400, streams, **report)[-1] == late


def test_a_spare_is_there_before_it_is_needed() -> None:
    application = Application(Tuning(spare=1))
    assert application.run(10, 10)[-1] == 2


def test_who_wakes_a_model_up_is_met_by_as_many_replicas_as_its_size_calls_for() -> None:
    """None runs that could say how many streams one carries."""
    application = Application(Tuning(zero_after_s=60.0, down_after_s=30.0), least=0, capacity=256)
    application.run(30, 10)
    assert application.run(400, 0)[-1] == 0
    assert application.tick(180).targets["Talker"] == 1


def test_what_nobody_asks_for_goes_to_zero_and_wakes_with_all_stages() -> None:
    application = Application(Tuning(zero_after_s=60.0, down_after_s=30.0), least=0)
    application.run(20, 10)
    assert application.run(200, 0)[-1] == 0
    assert application.reasons[-1] == "zero"
    decision = application.tick(3)
    assert set(decision.targets.values()) == {1}
    assert decision.reason == "wake"


def test_a_minimum_is_kept_without_any_load() -> None:
    application = Application(Tuning(zero_after_s=10.0), least=2)
    assert application.run(1000, 0)[-1] == 2


def test_serve_may_follow_late() -> None:
    """Serve applies delays of its own, and the policy stays with what it has decided."""
    memory, targets = Memory(), []
    for second in range(60):
        stages = {name: StageLoad(1, 1, 1, 8, 300.0) for name in STAGES}
        decision, memory = decide(Tuning(), memory, Snapshot(1000.0 + second, stages))
        targets.append(decision.targets["Talker"])
    assert targets[10:] == [7] * 50


def test_ingresses_change_in_steps_and_slowly_down() -> None:
    memory, counts = Memory(), []

    def tick(at_s: float, streams: float, target: int) -> int:
        nonlocal memory
        load = {"Ingress": StageLoad(target, target, 1, 8, streams)}
        decision, memory = decide(Tuning(), memory, Snapshot(at_s, load))
        return decision.targets["Ingress"]

    count = 1
    for second in range(3000):
        count = tick(float(second), 150 if second < 1000 else 10, count)
        counts.append(count)
    assert counts[10] == counts[1500] == 4
    assert counts[-1] == 1
    assert set(counts) <= {1, 2, 4}


def test_what_may_be_chance_in_a_few_requests_starts_nothing() -> None:
    # One listener, whose long requests follow one another: now one in ten seconds, now two.
    application = Application(capacity=4)
    for second in range(120):
        arrivals = 0.2 if second % 10 < 3 else 0.1
        decision = application.tick(1, arrivals_per_s=arrivals, service_s=17.0)
        assert decision.targets["Talker"] == 1


def test_a_voice_encoder_comes_for_a_recording_and_goes_when_there_is_none_for_long() -> None:
    tuning, memory = Tuning(zero_after_s=60), Memory()
    count, counts = 0, []
    for at_s, requests in ((0, 0), (1, 1), (2, 9), (3, 0), (30, 0), (70, 0), (71, 1)):
        encoder = StageLoad(count, count, 0, 2, requests)
        others = {name: StageLoad(1, 1, 1, 8, 0.0) for name in STAGES}
        decision, memory = decide(
            tuning, memory, Snapshot(1000.0 + at_s, {**others, "VoiceEncoder": encoder})
        )
        count = decision.targets["VoiceEncoder"]
        counts.append(count)
        assert {decision.targets[name] for name in STAGES} == {1}
    assert counts == [0, 1, 2, 2, 2, 0, 1]


def test_who_is_refused_is_load_that_no_stage_sees() -> None:
    # Four places are taken; five more clients ask again every second, and speech takes ten.
    tuning, memory = Tuning(), Memory()
    full = {"capacity": 4.0, "running": 4.0, "service_s": 10.0, "arrivals_per_s": 0.4}
    targets, reasons = [], []
    for second in range(5):
        stages = {
            "Fused": StageLoad(1, 1, 1, 8, 4.0, (full,)),
            "Ingress": StageLoad(1, 1, 1, 1, 9.0, ({"refused_per_s": 5.0},)),
        }
        decision, memory = decide(tuning, memory, Snapshot(1000.0 + second, stages))
        targets.append(decision.targets["Fused"])
        reasons.append(decision.reason)
    # By doubling, within seconds; without the refused it would be two, until the second is full.
    assert targets == [1, 2, 2, 3, 3]
    assert reasons.count("refused") == 2


def test_a_pile_that_is_gone_before_another_replica_could_help_asks_for_no_fleet() -> None:
    """As after a time without any replica, in which everybody waited."""
    quick = Application(most=32).run(10, 1000, service_s=0.4, arrivals_per_s=20.0)
    assert quick[-1] == 2
    slow = Application(most=32).run(20, 1000, service_s=40.0, arrivals_per_s=0.5)
    assert slow[-1] == 21  # 1000 streams at three quarters of 64


def test_arrivals_grow_where_it_is_more_than_chance() -> None:
    application = Application(capacity=64)
    application.run(20, 5, arrivals_per_s=0.5, service_s=10.0)
    application.run(9, 5, arrivals_per_s=1.0, service_s=10.0)
    decision = application.tick(5, arrivals_per_s=1.0, service_s=10.0)
    assert decision.inputs["growth"] == 1.0
    application = Application(capacity=64)
    application.run(20, 50, arrivals_per_s=50.0, service_s=1.0)
    application.run(9, 50, arrivals_per_s=100.0, service_s=1.0)
    decision = application.tick(50, arrivals_per_s=100.0, service_s=1.0)
    assert decision.inputs["growth"] > 1.5


def test_a_crowd_before_closed_doors_is_no_measure_of_what_it_needs() -> None:
    application = Application(least=2, start_s=15.0)
    application.run(30, 60)
    application.ready = {name: [application.at_s + 15.0] * 2 for name in STAGES}
    assert max(application.run(15, 1400)) == 2
    # From then on it is.
    assert max(application.run(10, 400)) > 2
