"""What the launcher does when it is told to end."""

import signal
import subprocess
import sys
import time

import pytest

from serve_app.launch.ending import finish, limit_of


class Busy:
    """Ingresses of `streams` that last so long each, and what they were told; has the clock."""

    def __init__(self, *lasting_s: float, cut_s: float = 0.0, unsent_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []
        self.said: list[str] = []
        self._ends_s = [*lasting_s]
        self._cut_s = cut_s
        self._unsent_s = unsent_s

    def finish(self, limit_s: float) -> float:
        """The seconds that it took."""
        finish(self, limit_s, self.said.append, self.sleep, lambda: self.now_s)
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def drain(self) -> int:
        self.calls.append("drain")
        return self._left()

    def cut(self) -> int:
        if "cut" not in self.calls:
            self._ends_s = [min(end_s, self.now_s + self._cut_s) for end_s in self._ends_s]
        self.calls.append("cut")
        return self._left()

    def unsent(self) -> int:
        return int(self.now_s < self._unsent_s)

    def _left(self) -> int:
        return sum(end_s > self.now_s for end_s in self._ends_s)


def test_who_speaks_nothing_ends_at_once() -> None:
    idle = Busy()
    assert idle.finish(30) == 0
    assert idle.calls == ["drain"]
    assert idle.said == []


def test_open_streams_are_finished_and_nothing_waits_for_the_limit() -> None:
    busy = Busy(1.0, 4.0)
    assert 4 < busy.finish(30) < 5.1
    assert {*busy.calls} == {"drain"}
    assert busy.said == ["finishing 2 streams, for 30 s at most; press Ctrl-C again to end now"]


def test_what_is_left_at_the_limit_is_cut() -> None:
    busy = Busy(1.0, 100.0, cut_s=0.3)
    assert 5 < busy.finish(5) < 6.5
    assert busy.calls.index("cut") == busy.calls.count("drain")
    assert busy.said[1:] == ["1 stream did not end within 5 s and will be cut"]


def test_who_does_not_take_its_end_is_not_waited_for() -> None:
    assert Busy(100.0, cut_s=50.0).finish(5) < 8


def test_a_limit_of_nothing_cuts_at_once() -> None:
    busy = Busy(100.0)
    assert busy.finish(0) < 3
    assert "cut" in busy.calls


def test_what_is_made_is_sent_to_its_end() -> None:
    assert 9 < Busy(1.0, unsent_s=9.0).finish(30) < 9.3
    # Also of streams that had ended before.
    assert 9 < Busy(unsent_s=9.0).finish(30) < 9.3
    assert 5 < Busy(1.0, unsent_s=60.0).finish(5) < 6


@pytest.mark.parametrize(
    ("stated", "limit_s"), [([{}], 30), ([{"drain_s": 5}], 5), ([{"drain_s": 5}, {}], 30)]
)
def test_the_limit_is_the_longest_of_the_ingresses(stated: list, limit_s: float) -> None:
    applications = [
        {"import_path": "serve_app.app:build_http", "args": {"ingress": ingress}}
        for ingress in stated
    ]
    model = {"import_path": "serve_app.app:build_model", "args": {"ingress": {"drain_s": 99}}}
    assert limit_of({"applications": [*applications, model]}) == limit_s


PROGRAM = """
import sys, threading, time
from serve_app.launch.ending import Ending

def drain(pause):
    print("draining", flush=True)
    if sys.argv[1] == "broken":
        raise RuntimeError("nobody answers")
    pause(float(sys.argv[1]))
    print("drained", flush=True)

def lost(told):
    return "all is gone" if sys.argv[2] == "lost" and told else None

ending = Ending(drain, lambda: SystemExit(0), lost)
ending.listen()
print("listening", flush=True)
try:
    if sys.argv[1] == "failed":
        threading.Timer(0.1, ending.fail).start()
    time.sleep(60)
except SystemExit:
    sys.exit(ending.has_failed)
finally:
    ending.settle()
    print("settled", flush=True)
"""


class Told:
    """The program above, and what it says."""

    def __init__(self, drain: str, cluster: str = "there") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, drain, cluster],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.line() == "listening"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, number: int) -> float:
        self.process.send_signal(number)
        return time.monotonic()

    def ended(self) -> tuple[int, str]:
        # Not `communicate`, which does not know what `line` has read ahead.
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        return self.process.wait(30), said.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_ends_it_when_it_has_drained(number: int) -> None:
    told = Told("1")
    at_s = told.tell(number)
    assert told.line() == "draining"
    assert told.ended() == (0, "drained\nsettled")
    assert 1 <= time.monotonic() - at_s < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: int) -> None:
    told = Told("50")
    told.tell(signal.SIGINT)
    assert told.line() == "draining"
    time.sleep(0.5)
    at_s = told.tell(number)
    assert told.ended() == (0, "settled")
    assert time.monotonic() - at_s < 5


def test_a_signal_that_is_passed_on_as_well_is_one() -> None:
    told = Told("1")
    told.tell(signal.SIGINT)
    told.tell(signal.SIGINT)
    assert told.line() == "draining"
    assert told.ended() == (0, "drained\nsettled")


def test_it_ends_where_nobody_can_be_told() -> None:
    told = Told("broken")
    told.tell(signal.SIGTERM)
    assert told.line() == "draining"
    assert told.ended() == (0, "settled")


def test_where_the_cluster_is_lost_nothing_is_waited_for() -> None:
    told = Told("50", "lost")
    at_s = told.tell(signal.SIGTERM)
    assert told.line() == "draining"
    assert told.ended() == (1, "all is gone: the server ends")
    assert time.monotonic() - at_s < 5


def test_a_server_that_cannot_start_ends_with_a_status() -> None:
    assert Told("failed").ended() == (1, "settled")
