"""The benchmark of what a stream costs goes through the real handlers, whatever they are now."""

import asyncio
import re

import pytest
import uvloop

from load_tests.stages import encoders, new_calls, streaming
from serve_app.audio.formats import AudioFormat

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


@pytest.mark.parametrize("is_busy", [False, True])
def test_encoders_make_audio_beside_the_loop_and_the_loop_goes_round(is_busy: bool) -> None:
    audio_s_per_s, turns_per_s = encoders.measure(AudioFormat.MP3, 2, is_busy, 0.08, 0.2)
    assert audio_s_per_s > 0
    assert turns_per_s > 0


def test_a_full_replica_takes_new_calls_beside_its_chunks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    new_calls.main(["--wave", "4", "--frames", "1", "--calls", "10"])
    found = re.search(r"(\d+) chunks/s alone; (\d+) new calls/s", capfd.readouterr().out)
    assert found is not None
    assert all(int(each) > 0 for each in found.groups())
