"""How a stage's stream ends where it has no room."""

import asyncio
import inspect
import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import cloudpickle
import pytest

from serve_app.deployments.calls import Refused, ending_refused
from serve_app.errors import Full, Overloaded, StageFailed


class Stage:
    """Yields so many items and then fails with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = 0

    @ending_refused
    def items(self, count: int, *, first: int = 0) -> AsyncGenerator[int, None]:
        return self._items(range(first, first + count))

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


def test_serve_finds_a_generator_that_it_can_send_to_a_replica() -> None:
    """By value, as it does with what a deployment's own module defines."""
    assert inspect.isasyncgenfunction(Stage.items)
    sent = cloudpickle.loads(cloudpickle.dumps(Stage.items))
    (last,) = asyncio.run(_collect(sent, Stage(Overloaded("no room"))))
    # The class that the other end looks for, not another one of the same name.
    assert isinstance(last, Refused)


async def _collect(
    method: Callable[[Stage, int], AsyncGenerator[object, None]], stage: Stage
) -> list[object]:
    return [item async for item in method(stage, 0)]
