"""What a key may use, reckoned with a clock of the test's."""

import asyncio

import pytest

from serve_app.config import AccessConfig
from serve_app.http.access.keyring import Keyring
from serve_app.http.access.limits import KeyLimits, duration
from serve_app.http.access.peers import Ingresses
from serve_app.http.health import Status
from serve_app.keys.digest import digest_of
from serve_app.keys.key_file import Key, KeyFileError, write


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def limits_of(clock, ingresses=1, **config):
    return KeyLimits(AccessConfig(**config), lambda: ingresses, clock)


def key_of(name="a", **limits):
    return Key(name=name, hash=digest_of(name), **limits)


def entered(limits, key):
    """How many requests are let in one after the other, each over before the next."""
    count = 0
    while limits.enter(key) is None:
        limits.leave(key)
        count += 1
    return count


def test_a_rate_is_a_bucket_that_fills_again():
    clock = Clock()
    limits, key = limits_of(clock), key_of(requests_per_minute=30)
    assert entered(limits, key) == 30
    refusal = limits.enter(key)
    assert refusal.retry_after_s == pytest.approx(2.0)
    assert "30 requests per minute" in refusal.message
    clock.now_s += 2.0
    assert entered(limits, key) == 1
    clock.now_s += 3600
    assert entered(limits, key) == 30


def test_what_is_running_counts_until_it_leaves():
    limits, key = limits_of(Clock()), key_of(concurrent=2)
    assert limits.enter(key) is limits.enter(key) is None
    assert "2 requests at once" in limits.enter(key).message
    limits.leave(key)
    assert limits.enter(key) is None


def test_a_refused_request_uses_nothing_up():
    limits, key = limits_of(Clock()), key_of(concurrent=1, requests_per_minute=3)
    assert limits.enter(key) is None
    assert limits.enter(key) is not None
    assert limits.headers(key)["x-ratelimit-remaining-requests"] == "2"


def test_keys_have_limits_apart_and_those_of_the_configuration_where_they_state_none():
    limits = limits_of(Clock(), requests_per_minute=2)
    assert entered(limits, key_of("a")) == 2
    assert entered(limits, key_of("b")) == 2
    assert entered(limits, key_of("c", requests_per_minute=5)) == 5


@pytest.mark.parametrize(("ingresses", "rate", "at_once"), [(2, 15, 2), (4, 7, 1), (100, 1, 1)])
def test_ingresses_share_a_limit(ingresses, rate, at_once):
    limits = limits_of(Clock(), ingresses)
    assert entered(limits, key_of("rate", requests_per_minute=30)) == rate
    key = key_of("at_once", concurrent=3)
    count = 0
    while limits.enter(key) is None:
        count += 1
    assert count == at_once


def test_the_headers_are_openais():
    clock = Clock()
    limits, key = limits_of(clock, 2), key_of(requests_per_minute=60)
    limits.enter(key)
    assert limits.headers(key) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "2s",
    }
    assert limits.headers(key_of("free")) == {}
    assert [duration(s) for s in (0, 0.012, 1.5, 59.9, 360)] == [
        "0ms",
        "12ms",
        "1.5s",
        "59.9s",
        "6m0s",
    ]


def test_a_changed_file_is_read_again_and_a_broken_one_is_not_believed(tmp_path):
    clock, path = Clock(), tmp_path / "keys.yaml"
    write(path, [key_of("a")])
    keyring = Keyring([path], clock=clock)
    assert keyring.find("a").name == "a"
    write(path, [key_of("b")])
    assert keyring.find("b") is None  # looked for at most once a second
    clock.now_s += 1
    assert keyring.find("b").name == "b"
    assert keyring.find("a") is None
    path.write_text("keys: [")
    clock.now_s += 1
    assert keyring.find("b").name == "b"
    path.unlink()
    clock.now_s += 1
    assert keyring.find("b").name == "b"
    write(path, [])
    clock.now_s += 1
    assert keyring.find("b") is None
    assert not keyring.is_open


def test_a_server_that_was_to_be_locked_does_not_start_open(tmp_path):
    with pytest.raises(KeyFileError):
        Keyring([tmp_path / "keys.yaml"])
    assert Keyring().is_open
    path = tmp_path / "keys.yaml"
    write(path, [key_of("a")])
    with pytest.raises(KeyFileError, match="another key"):
        Keyring([path], [Key(name="a", hash=digest_of("other"))])


def test_the_ingresses_are_counted_without_waiting_for_the_answer():
    async def main():
        answers = [Status("healthy", True, replicas={"Ingress": {"ready": 3, "total": 3}})]
        clock = Clock()

        async def status():
            if not answers:
                raise OSError("away")
            return answers.pop()

        ingresses = Ingresses(status, clock)
        assert ingresses.count() == 1
        await asyncio.sleep(0.01)
        assert ingresses.count() == 3
        clock.now_s += 60
        ingresses.count()
        await asyncio.sleep(0.01)
        assert ingresses.count() == 3

    asyncio.run(main())
