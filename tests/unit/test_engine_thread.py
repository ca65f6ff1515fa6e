"""The engine's thread around a core that is lost while it rests."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.errors import StageFailed, StageUnavailable
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.talker.engine_thread import EngineThread
from serve_app.models.talker.outbox import TalkerStream
from serve_app.models.talker.runtime import TalkerPrompt
from serve_app.types import Prompt, Sampling
from tests.conftest import TinyCheckpoint


class LostCore:
    """Takes requests and steps none; gone at the first look after one has come."""

    def __init__(self) -> None:
        self.stepper = SimpleNamespace(can_launch=False, has_work=False, in_flight=0)
        self.added: list[str] = []

    def add(self, request_id: str, work: TalkerPrompt) -> None:
        self.added.append(request_id)

    def load(self) -> tuple[int, int, float]:
        if self.added:
            raise RuntimeError("the device is lost")
        return 0, 0, 0.0

    def shutdown(self) -> None: ...


def test_who_comes_after_the_end_is_told_and_does_not_wait(tiny_checkpoint: TinyCheckpoint) -> None:
    core, deaths = LostCore(), []
    predictor: Any = SimpleNamespace(reached_s=-math.inf)
    build: Any = lambda runtime: core  # noqa: E731
    prompt = Prompt(
        request_id="r",
        rows=np.full((4, 17), -1, np.int32),
        trailing_text=np.zeros(0, np.int32),
        pad_text_id=0,
        talker=Sampling(0.9, 50, 1.0),
        subtalker=Sampling(0.9, 50, 1.0),
        seed=1,
        min_new_tokens=2,
        max_new_tokens=20,
    )
    work = TalkerPrompt(prompt, np.zeros((0, 16), np.int64))

    async def scenario() -> None:
        thread = EngineThread(
            build, read_spec(tiny_checkpoint()).talker, predictor, None, deaths.append, 30.0
        )
        first, late = (TalkerStream(asyncio.get_running_loop(), asyncio.Queue()) for _ in range(2))
        thread.submit("first", first, work)
        item = await asyncio.wait_for(first.queue.get(), 60)
        assert isinstance(item, StageFailed)
        assert "the device is lost" in str(item)
        with pytest.raises(StageUnavailable, match="the device is lost"):
            thread.submit("late", late, work)
        thread.withdraw("first", finished=False)
        assert thread.num_streams == 0
        thread.close()

    asyncio.run(scenario())
    assert core.added == ["first"]
    assert len(deaths) == 1
