"""What a key may use, reckoned with a clock of the test's."""

import asyncio

import pytest

from serve_app.config import AccessConfig
from serve_app.http.access.keyring import Keyring
from serve_app.http.access.ledger import SILENT_S, Ledger
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


class There:
    """A ledger that all ingresses reach; how many calls of it fail."""

    def __init__(self, clock, failing=0):
        self.ledger = Ledger(clock)
        self.failing = failing

    async def ask(self, *asked):
        if self.failing:
            self.failing -= 1
            raise OSError("away")
        return self.ledger.ask(*asked)

    def tell(self, *told):
        self.ledger.tell(*told)


def limits_of(clock, shared=None, ingresses=1, **config):
    return KeyLimits(AccessConfig(**config), shared, lambda: ingresses, clock)


def key_of(name="a", **limits):
    return Key(name=name, hash=digest_of(name), **limits)


async def entered(limits, key):
    """How many requests are let in one after the other, each over before the next."""
    count = 0
    while (await limits.enter(key)).refusal is None:
        limits.leave(key)
        count += 1
    return count


async def begun(limits, key):
    """Whether one more is let in; it stays."""
    return (await limits.enter(key)).refusal is None


def test_a_rate_is_a_bucket_that_fills_again():
    async def main():
        clock = Clock()
        limits, key = limits_of(clock), key_of(requests_per_minute=30)
        assert await entered(limits, key) == 30
        refusal = (await limits.enter(key)).refusal
        assert refusal.retry_after_s == pytest.approx(2.0)
        assert "30 requests per minute" in refusal.message
        clock.now_s += 2.0
        assert await entered(limits, key) == 1
        clock.now_s += 3600
        assert await entered(limits, key) == 30

    asyncio.run(main())


def test_what_is_running_counts_until_it_leaves():
    async def main():
        limits, key = limits_of(Clock()), key_of(concurrent=2)
        assert await begun(limits, key)
        assert await begun(limits, key)
        assert "2 requests at once" in (await limits.enter(key)).refusal.message
        limits.leave(key)
        assert await begun(limits, key)

    asyncio.run(main())


def test_a_refused_request_uses_nothing_up():
    async def main():
        limits, key = limits_of(Clock()), key_of(concurrent=1, requests_per_minute=3)
        assert await begun(limits, key)
        entry = await limits.enter(key)
        assert entry.refusal is not None
        assert entry.headers["x-ratelimit-remaining-requests"] == "2"

    asyncio.run(main())


def test_keys_have_limits_apart_and_those_of_the_configuration_where_they_state_none():
    async def main():
        limits = limits_of(Clock(), requests_per_minute=2)
        assert await entered(limits, key_of("a")) == 2
        assert await entered(limits, key_of("b")) == 2
        assert await entered(limits, key_of("c", requests_per_minute=5)) == 5

    asyncio.run(main())


def test_a_limit_holds_over_all_ingresses_together_wherever_requests_go():
    async def main():
        clock = Clock()
        there = There(clock)
        several = [limits_of(clock, there, ingresses=3) for _ in range(3)]
        rate, key = key_of("rate", requests_per_minute=30), key_of("at_once", concurrent=4)
        assert await entered(several[0], rate) == 30
        assert [await entered(one, rate) for one in several[1:]] == [0, 0]
        clock.now_s += 10
        assert [await entered(one, rate) for one in reversed(several)] == [5, 0, 0]
        assert [await begun(several[i], key) for i in (0, 0, 1, 2, 2, 0)] == [True] * 4 + [
            False
        ] * 2
        several[1].leave(key)
        assert [await begun(several[i], key) for i in (2, 1)] == [True, False]

    asyncio.run(main())


def test_many_at_once_are_let_in_exactly_as_often_as_they_may():
    async def main():
        clock = Clock()
        there = There(clock)
        several = [limits_of(clock, there) for _ in range(4)]
        key = key_of(concurrent=7)
        together = [begun(several[i % 4], key) for i in range(40)]
        assert sum(await asyncio.gather(*together)) == 7

    asyncio.run(main())


def test_what_an_ingress_had_that_is_gone_is_not_running():
    async def main():
        clock = Clock()
        there = There(clock)
        lost, other = limits_of(clock, there), limits_of(clock, there)
        key = key_of(concurrent=2)
        assert await begun(lost, key)
        assert await begun(lost, key)
        assert not await begun(other, key)
        clock.now_s += SILENT_S + 1
        assert await begun(other, key)

    asyncio.run(main())


def test_a_ledger_that_began_anew_learns_what_is_running():
    async def main():
        clock = Clock()
        there = There(clock)
        one, other = limits_of(clock, there), limits_of(clock, there)
        key = key_of(concurrent=3)
        for _ in range(2):
            assert await begun(one, key)
        there.ledger = Ledger(clock)
        # By its next request, or by what it tells while there are any.
        assert await begun(one, key)
        assert not await begun(other, key)

    asyncio.run(main())


@pytest.mark.parametrize(("ingresses", "rate", "at_once"), [(2, 15, 2), (4, 7, 1), (100, 1, 1)])
def test_without_the_ledger_each_ingress_goes_by_its_part(ingresses, rate, at_once):
    async def main():
        limits = limits_of(Clock(), There(Clock(), failing=1000), ingresses)
        assert await entered(limits, key_of("rate", requests_per_minute=30)) == rate
        key = key_of("at_once", concurrent=3)
        count = 0
        while await begun(limits, key):
            count += 1
        assert count == at_once

    asyncio.run(main())


def test_a_ledger_that_does_not_answer_is_left_alone_for_a_while():
    async def main():
        clock = Clock()
        there = There(clock, failing=1)
        limits, key = limits_of(clock, there, ingresses=2), key_of(requests_per_minute=4)
        assert await entered(limits, key) == 2
        clock.now_s += 3
        assert await entered(limits, key) == 4

    asyncio.run(main())


def test_who_leaves_while_the_ledger_is_asked_is_not_counted():
    async def main():
        asked = asyncio.Event()

        class SlowOnce(There):
            async def ask(self, *asked_for):
                if not asked.is_set():
                    asked.set()
                    await asyncio.sleep(60)
                return await super().ask(*asked_for)

        limits, key = limits_of(Clock(), SlowOnce(Clock())), key_of(concurrent=1)
        waiting = asyncio.create_task(limits.enter(key))
        await asked.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await begun(limits, key)

    asyncio.run(main())


def test_who_was_let_in_without_learning_of_it_is_not_running_for_the_others():
    async def main():
        asked = asyncio.Event()

        class LosesAnswers(There):
            async def ask(self, *asked_for):
                await super().ask(*asked_for)
                asked.set()
                await asyncio.sleep(60)

        clock = Clock()
        there = There(clock)
        losing = LosesAnswers(clock)
        losing.ledger = there.ledger
        limits, other = limits_of(clock, losing, ingresses=2), limits_of(clock, there)
        key = key_of(concurrent=1)
        waiting = asyncio.create_task(limits.enter(key))
        await asked.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await begun(other, key)

    asyncio.run(main())


def test_a_refusal_by_an_ingress_part_leaves_nothing_in_the_ledger():
    async def main():
        clock = Clock()
        there = There(clock)
        limits, other = limits_of(clock, there, ingresses=4), limits_of(clock, there)
        key = key_of(concurrent=2)
        assert await begun(limits, key)

        async def lost(*asked):
            there.ledger.ask(*asked)
            raise OSError("the answer is lost")

        there.ask = lost
        assert not await begun(limits, key)  # two, where its part is one
        del there.ask
        assert await begun(other, key)

    asyncio.run(main())


def test_a_request_from_before_its_key_had_limits_ends_for_itself():
    async def main():
        limits = limits_of(Clock())
        free, limited = key_of(), key_of(concurrent=1)
        assert await begun(limits, free)
        assert await begun(limits, limited)
        limits.leave(free)
        assert not await begun(limits, limited)

    asyncio.run(main())


def test_a_rate_without_end_is_no_rate(tmp_path):
    for number in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite"):
            key_of(requests_per_minute=number)
        with pytest.raises(ValueError, match="finite"):
            AccessConfig(requests_per_minute=number)


def test_the_headers_are_openais():
    async def main():
        clock = Clock()
        limits = limits_of(clock, There(clock, failing=1), ingresses=2)
        key = key_of(requests_per_minute=60)
        assert (await limits.enter(key)).headers == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "58",
            "x-ratelimit-reset-requests": "2s",
        }
        assert (await limits.enter(key_of("free"))).headers == {}

    asyncio.run(main())
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
        answers = [Status("healthy", replicas={"Ingress": {"ready": 3, "total": 3}})]
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
