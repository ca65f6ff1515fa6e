"""The crowd of `load_tests.crowd` on a server with fake stages."""

import asyncio
from contextlib import suppress

from load_tests.crowd.clients import FORMATS, Crowd
from load_tests.loops.workload import Workload
from tests.integration.http.service import running
from tests.waiting import until


def test_a_crowd_comes_in_every_format_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        with running(num_frames=20) as (url, service):
            workload = Workload(min_frames=None, max_frames=None)
            crowd = Crowd(url, workload, size=len(FORMATS))
            coming = asyncio.create_task(crowd.run(seconds=60))
            async with asyncio.timeout(60):
                # The slow ones are still reading their first answer when the others are gone.
                while {form for _, form, _ in crowd.fates} != set(FORMATS):
                    await asyncio.sleep(0.01)
            coming.cancel()
            with suppress(asyncio.CancelledError):
                await coming
            assert {fate for _, _, fate in crowd.fates} <= {"complete", "left"}
            assert crowd.first_failure == ""
            await until(lambda: service.idle)

    asyncio.run(main())
