"""Work that ends with its client, and no other way of ending is taken for that."""

import asyncio

import pytest

from serve_app.http.response import ClientGone, until_gone


class Client:
    """What a server tells of a client: nothing until it has left."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}


def num_tasks() -> int:
    return len(asyncio.all_tasks())


def test_work_that_ends_gives_its_result_and_leaves_no_task() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 3

    async def main() -> None:
        assert await until_gone(Client().receive, work()) == 3
        assert num_tasks() == 1

    asyncio.run(main())


def test_a_client_that_leaves_ends_the_work_and_the_request_counts_as_never_cancelled() -> None:
    async def main() -> None:
        client, unwound = Client(), False

        async def work() -> None:
            nonlocal unwound
            client.left.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                unwound = True

        with pytest.raises(ClientGone):
            await until_gone(client.receive, work())
        assert unwound
        request = asyncio.current_task()
        assert request is not None
        assert request.cancelling() == 0
        assert num_tasks() == 1

    asyncio.run(main())


def test_a_server_that_cannot_tell_of_its_client_has_lost_it() -> None:
    async def receive() -> dict[str, str]:
        raise OSError("the connection is lost")

    async def main() -> None:
        with pytest.raises(ClientGone):
            await until_gone(receive, asyncio.sleep(60))

    asyncio.run(main())


def test_an_error_of_the_work_comes_through() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await until_gone(Client().receive, work())
        assert num_tasks() == 1

    asyncio.run(main())


@pytest.mark.parametrize("leaves", [False, True])
def test_a_request_that_is_cancelled_is_so_also_where_its_client_leaves_at_once(
    leaves: bool,
) -> None:
    async def main() -> None:
        client = Client()
        request = asyncio.create_task(until_gone(client.receive, asyncio.sleep(60)))
        while num_tasks() < 3:  # the one that watches
            await asyncio.sleep(0)
        if leaves:
            client.left.set()
        request.cancel()
        await asyncio.wait({request})
        assert request.cancelled()
        assert num_tasks() == 1

    asyncio.run(main())
