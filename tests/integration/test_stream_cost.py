"""The benchmark of what a stream costs goes through the real handlers, whatever they are now."""

import asyncio

import pytest
import uvloop

from load_tests.stages import streaming

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", streaming.PATHS)
def test_every_path_passes_on_all_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = 0
    passing = streaming.Arrivals.__anext__

    async def counted(self: streaming.Arrivals) -> object:
        nonlocal arrived
        item = await passing(self)
        arrived += 1
        return item

    async def requests() -> None:
        nonlocal arrived
        once = await streaming.PATHS[name]()
        arrived = 0  # the ingress has warmed up
        await streaming.measure(once, streams=2, requests=4, chunks=5)

    monkeypatch.setattr(streaming.Arrivals, "__anext__", counted)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(requests())
    assert arrived == 4 * 5
