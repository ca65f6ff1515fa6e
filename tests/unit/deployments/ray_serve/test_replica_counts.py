"""Replica counts of the ingress while Serve's controller is away."""

import asyncio
import threading
from collections.abc import Mapping

from serve_app.deployments.ingress import ReplicaCounts

COUNTS = {"Talker": {"ready": 1, "total": 1}}


def test_one_thread_waits_for_a_controller_that_does_not_answer() -> None:
    asked: list[int] = []
    back = threading.Event()

    def ask() -> Mapping[str, Mapping[str, int]]:
        asked.append(threading.get_ident())
        assert back.wait(60)
        return COUNTS

    async def main() -> None:
        counts = ReplicaCounts(ask, max_age_s=0.01, wait_s=0.01)
        for _ in range(5):
            assert await counts.now() == {}
            await asyncio.sleep(0.02)
        assert len(asked) == 1
        back.set()
        while not await counts.now():
            await asyncio.sleep(0.02)
        assert await counts.now() == COUNTS

    asyncio.run(main())


def test_what_was_known_last_holds_while_the_controller_is_away() -> None:
    answers = [COUNTS, None]

    def ask() -> Mapping[str, Mapping[str, int]]:
        answer = answers.pop(0) if answers else None
        if answer is None:
            raise ConnectionError("the controller is away")
        return answer

    async def main() -> None:
        counts = ReplicaCounts(ask, max_age_s=0.0)
        for _ in range(3):
            assert await counts.now() == COUNTS

    asyncio.run(main())
