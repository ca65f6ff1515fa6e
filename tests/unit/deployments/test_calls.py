"""How a stage's stream ends where it has no room."""

import asyncio
import inspect
import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import cloudpickle
import pytest

from serve_app.deployments.calls import Refused, Told, ending_refused, telling
from serve_app.errors import Full, Overloaded, StageFailed


class Stage:
    """Yields so many items and then fails with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = 0

    @ending_refused
    def items(self, count: int, *, first: int = 0) -> AsyncGenerator[int, None]:
        return self._items(range(first, first + count))

    @telling
    @ending_refused
    def counted(self, count: int) -> AsyncGenerator[int, None]:
        return self._items(range(count))

    async def _items(self, numbers: range) -> AsyncGenerator[int, None]:
        try:
            for number in numbers:
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


async def all_of(stage: Stage) -> list[int | Refused]:
    return [item async for item in stage.items(2, first=5)]


def test_a_refusal_is_the_last_item_and_other_errors_are_raised() -> None:
    assert asyncio.run(all_of(Stage())) == [5, 6]
    for refusal in (Overloaded("no room", 2.0), Full("no room at all", 3.0)):
        *items, last = asyncio.run(all_of(Stage(refusal)))
        assert items == [5, 6]
        assert isinstance(last, Refused)
        assert last.error is refusal
        assert pickle.loads(pickle.dumps(last)).error.retry_after_s == refusal.retry_after_s
    with pytest.raises(StageFailed):
        asyncio.run(all_of(Stage(StageFailed("broken"))))


def test_who_leaves_closes_the_stream_of_the_stage() -> None:
    async def main() -> None:
        stage = Stage()
        async with aclosing(stage.items(9)) as items:
            assert await anext(items) == 0
            assert not stage.closed
        assert stage.closed == 1

    asyncio.run(main())


def test_each_item_tells_how_many_streams_are_open() -> None:
    async def main() -> None:
        stage, other = Stage(), Stage()
        async with aclosing(stage.counted(3)) as first:
            assert await anext(first) == Told(0, 1)
            async with aclosing(stage.counted(9)) as second:
                assert await anext(second) == Told(0, 2)
                assert await anext(first) == Told(1, 2)
                assert [told async for told in other.counted(1)] == [Told(0, 1)]
            assert await anext(first) == Told(2, 1)
        refusing = Stage(Overloaded("no room"))
        (last,) = [told async for told in refusing.counted(0)]
        assert isinstance(last.item, Refused)
        assert last.streams == 1
        assert [told.streams async for told in stage.counted(1)] == [1]
        assert pickle.loads(pickle.dumps(Told("a", 3))) == Told("a", 3)

    asyncio.run(main())


def test_serve_finds_a_generator_that_it_can_send_to_a_replica() -> None:
    """By value, as it does with what a deployment's own module defines."""
    assert inspect.isasyncgenfunction(Stage.items)
    assert inspect.isasyncgenfunction(Stage.counted)
    counted = cloudpickle.loads(cloudpickle.dumps(Stage.counted))
    (told,) = asyncio.run(_collect(counted, Stage(Overloaded("no room"))))
    assert isinstance(told, Told)
    sent = cloudpickle.loads(cloudpickle.dumps(Stage.items))
    (last,) = asyncio.run(_collect(sent, Stage(Overloaded("no room"))))
    # The class that the other end looks for, not another one of the same name.
    assert isinstance(last, Refused)


async def _collect(
    method: Callable[[Stage, int], AsyncGenerator[object, None]], stage: Stage
) -> list[object]:
    return [item async for item in method(stage, 0)]
