"""The policy that ships on simulated fleets: fixed loads, as inequalities."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray._common.formatters import JSONFormatter
from ray.serve._private.logging_utils import ServeFormatter

from load_tests.simulator import crowd, loads, logs, routing
from load_tests.simulator.balance import unevenness
from load_tests.simulator.machine import BIN_FRAMES, NUM_BINS, Fleet, bins_of
from load_tests.simulator.measured import Service
from load_tests.simulator.report import Row, over_seeds, plot, table
from load_tests.simulator.run import oracle_replicas, simulate
from serve_app.http.observe.log import as_text, fields_of
from serve_app.http.observe.record import Record
from serve_app.scaling.tuning import Tuning


def steady(rate_hz: int, seconds: int, frames: int = 64) -> loads.Load:
    arrivals = np.full(seconds, rate_hz, dtype=np.int64)
    return loads.Load("steady", arrivals, np.array([frames], dtype=np.int64))


def test_streams_take_the_time_of_their_steps() -> None:
    fleet = Fleet(Service(), ready=1)
    fleet.second(0.0, 1, bins_of(np.array([320])))
    seconds = 1
    while fleet.streams >= 0.5:
        fleet.second(float(seconds), 0, np.zeros(NUM_BINS))
        seconds += 1
    # 320 frames at 3.06 ms.
    assert seconds == pytest.approx(1, abs=1)
    assert BIN_FRAMES <= 16


def test_what_is_lost_is_made_by_the_others() -> None:
    fleet = Fleet(Service(), ready=4)
    fleet.second(0.0, 100, bins_of(np.full(100, 4000)))
    before = fleet.streams
    moved = fleet.lose(1)
    assert moved == pytest.approx(before / 4)
    fleet.second(1.0, 0, np.zeros(NUM_BINS))
    assert fleet.streams == pytest.approx(before, rel=0.02)
    assert fleet.ready == 3


def test_a_steady_load_gets_what_it_needs_and_keeps_it() -> None:
    outcome = simulate(steady(400, 900), Tuning(), Service())
    assert outcome.refused == 0
    assert outcome.changes <= 6
    assert 3 <= outcome.wanted[-1] <= 5


def test_a_crowd_of_ten_times_as_many_is_held_with_warm_spares() -> None:
    load = loads.flash_crowd(0, 100.0)
    cold, warm = (simulate(load, replace(Tuning(), spare=n), Service()) for n in (0, 8))
    assert warm.first_audio_s(0.95, 600, 1200) < 0.1
    assert warm.refused <= cold.refused
    # It is over in ten minutes, and so are most of its replicas after that and the time of holding.
    assert cold.wanted[-1] < max(cold.wanted)


def test_lost_replicas_are_replaced() -> None:
    outcome = simulate(loads.node_loss(0, 400.0), Tuning(), Service())
    ready = [second.replicas for second in outcome.seconds]
    assert ready[905] < ready[895]
    assert ready[940] >= ready[895] - 1
    assert outcome.refused < 0.02 * outcome.requests


def test_no_policy_is_cheaper_than_who_knows_the_future() -> None:
    load = loads.bursty(0, 200.0, seconds=1200)
    outcome = simulate(load, Tuning(), Service())
    row = Row(outcome, Tuning(), oracle_replicas(load, Tuning(), Service()), seed=3)
    assert row.cost >= 1.0
    assert "| bursty | 3 | 0 |" in table([row])
    assert f"| bursty | 2 | {row.cost:.3f} |" in over_seeds([row, row])


def test_a_recorded_load_is_what_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "tuesday.jsonl"
    rows = [{"at_s": at_s, "frames": 50} for at_s in (100.0, 103.9, 100.5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = loads.recorded(file)
    assert load.name == "tuesday"
    assert load.arrivals.tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("form", [ServeFormatter("tts_Ingress", "abc"), JSONFormatter()])
def test_what_ingresses_have_logged_is_a_load(
    tmp_path: Path, form: logging.Formatter, as_json: bool
) -> None:
    """In the forms of those who write it."""
    files = [tmp_path / "1.log", tmp_path / "2.log"]
    # File, when it ended, how long it took, seconds of audio, status.
    for file, at_s, took_s, audio_s, status in (
        (0, 105.0, 3.0, 4.0, 200),
        (1, 104.5, 4.5, 0.8, 200),
        (1, 106.0, 0.01, 0.0, 429),
        (0, 101.2, 0.4, 8.0, 200),
    ):
        record = Record("an id", path="/v1/audio/speech", status=status, audio_s=audio_s)
        fields = fields_of(record, took_s)
        with files[file].open("a") as log:
            for said in ("Started.", json.dumps(fields) if as_json else as_text(fields)):
                line = logging.LogRecord("serve_app", logging.INFO, "", 0, said, None, None)
                line.created, line.msecs = at_s, 1000 * (at_s % 1)
                log.write(form.format(line) + "\n")
    found = logs.read(files)
    assert found.refused == 1
    assert [frames for _, frames in found.rows] == [10, 100, 50]
    assert [at_s for at_s, _ in found.rows] == pytest.approx([100.0, 100.8, 102.0])
    assert loads.of_requests("log", found.rows).arrivals.tolist() == [2, 0, 1]


def test_logs_without_a_request_are_no_load(tmp_path: Path) -> None:
    (tmp_path / "1.log").write_text("INFO 2026-11-26 19:00:00,000 tts_Ingress abc -- Started.\n")
    with pytest.raises(ValueError, match="no request"):
        logs.read([tmp_path / "1.log"])


def test_a_run_is_drawn_beside_the_oracle(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    load = steady(40, 60)
    row = Row(
        simulate(load, Tuning(), Service()), Tuning(), oracle_replicas(load, Tuning(), Service())
    )
    assert plot(tmp_path / "run.png", row)
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_replica_that_is_much_slower_gets_fewer_streams_where_late_ones_count() -> None:
    slower = (1.0, 1.0, 1.0, 24.0)
    fewest, late = (
        routing.simulate(Service(), slower, 90.0, 15.0, seed=1, counts_late=counts)
        for counts in (False, True)
    )
    assert late.streams[3] < 0.7 * fewest.streams[3]
    assert late.dry < fewest.dry


def test_before_a_full_replica_who_is_let_in_hardly_waits_and_no_place_stands_free() -> None:
    setting = crowd.Setting()
    full = crowd.measure(setting, 20.0, seed=0, streams=setting.places)
    assert full.refusals == 0
    for times in (3, 10):
        seen = crowd.measure(setting, 20.0, seed=0, rate_hz=times * full.per_s)
        assert seen.first_ms(0.95) < 1.4 * full.first_ms(0.95)
        assert seen.per_s > 0.97 * full.per_s
        # Nearly all hear it from the proxy; the replicas are asked in vain by few.
        assert seen.by_proxy > 0.75 * seen.refusals
        assert seen.by_replica < 0.1 * seen.complete + seen.by_ingress


def test_of_as_many_streams_as_there_are_places_hardly_one_is_refused() -> None:
    setting = crowd.Setting(Service(256), replicas=2, ingresses=8)
    seen = crowd.measure(setting, 8.0, seed=0, streams=512)
    assert seen.refusals < 0.01 * seen.complete
    # All at one moment: some end while what is known of them is old.
    setting = replace(setting, ingresses=10)
    for seed in (0, 1):
        seen = crowd.measure(setting, 8.0, seed, streams=512, at_once=True)
        assert seen.refusals < 0.01 * seen.complete


@pytest.mark.parametrize(("places", "ingresses"), [(8, 3), (4, 2), (8, 1)])
def test_of_few_places_none_is_refused_because_what_is_known_of_others_is_old(
    places: int, ingresses: int
) -> None:
    """Of 2.4 s each, which nobody may wait for."""
    setting = crowd.Setting(Service(places, slower=9.0), ingresses=ingresses)
    full = crowd.measure(setting, 60.0, seed=0, streams=places)
    assert full.refusals == 0
    assert crowd.measure(setting, 60.0, seed=0, streams=places, at_once=True).refusals == 0
    # Of ten times as many an ingress asks in vain for some ten times a second at most.
    seen = crowd.measure(setting, 60.0, seed=0, rate_hz=10 * full.per_s)
    assert seen.per_s > 0.95 * full.per_s
    assert seen.by_replica < 10 * ingresses * seen.span_s


def test_streams_of_several_ingresses_lie_evenly_on_the_replicas() -> None:
    setting = crowd.Setting(Service(256), replicas=2, ingresses=10)
    seen = crowd.measure(setting, 8.0, seed=0, streams=128, at_once=True)
    away, far = unevenness(seen.streams[len(seen.streams) // 8 :])
    assert away < 4
    assert far < 0.15


def test_unevenness_is_how_far_replicas_are_from_the_mean() -> None:
    assert unevenness([(10, 10), (12, 8)]) == (1.0, 0.5)
    assert unevenness([]) == (0.0, 0.0)
