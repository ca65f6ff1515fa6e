"""The metrics that Ray's agents have gathered, one agent per node."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp
import ray
from yarl import URL

# For all of it: who asks waits no longer, whatever the cluster is in.
_TIMEOUT_S: Final = 3.0
# For a node that was silent the last time, which may be dead before Ray says so.
_SILENT_S: Final = 0.3
# An agent that takes longer is given up; until then it is not asked a second time.
_LONGEST_S: Final = 15.0
# Who asks more often gets the same again: an agent hears of its processes less often still.
_MAX_AGE_S: Final = 1.0
_MAX_BYTES: Final = 32 << 20

logger = logging.getLogger(__name__)


class Agents:
    """Reads all agents at once; one that does not answer is left out.

    Those that Ray calls dead are not asked. One that was silent is asked again each time, but
    nobody waits for it until it answers.
    """

    def __init__(self, timeout_s: float = _TIMEOUT_S, silent_s: float = _SILENT_S) -> None:
        self._timeout_s = timeout_s
        self._silent_s = silent_s
        self._texts: Sequence[str] = ()
        self._read_s = float("-inf")
        self._reading = asyncio.Lock()
        # By the address of the agent, host and port.
        self._asked: dict[tuple[str, int], asyncio.Task[str]] = {}
        self._silent: set[tuple[str, int]] = set()
        self._nodes: Sequence[Mapping[str, Any]] = ()
        self._looking: asyncio.Task[Sequence[Mapping[str, Any]]] | None = None

    async def texts(self) -> Sequence[str]:
        """In Prometheus' format, each with everything of its node."""
        loop = asyncio.get_running_loop()
        async with self._reading:
            if loop.time() - self._read_s > _MAX_AGE_S:
                self._texts = await self._read(loop.time() + self._timeout_s)
                self._read_s = loop.time()
        return self._texts

    async def _read(self, end_s: float) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        await self._look()
        addresses = {address for node in self._nodes if (address := _address(node)) is not None}
        self._silent &= addresses
        for address, task in list(self._asked.items()):
            if task.done() and task.exception() is None:  # late: it can be asked again
                self._hear(address)
            if task.done() or address not in addresses:
                self._asked.pop(address).cancel()
        for address in addresses - self._asked.keys():
            self._asked[address] = asyncio.create_task(_text_of(*address))
        waited = [task for address, task in self._asked.items() if address not in self._silent]
        if waited:
            await asyncio.wait(waited, timeout=max(0.0, end_s - loop.time()))
        silent = [task for address, task in self._asked.items() if address in self._silent]
        if silent:
            within_s = min(self._silent_s, end_s - loop.time())
            await asyncio.wait(silent, timeout=max(0.0, within_s))
        return [text for address in sorted(addresses) if (text := self._answer(address))]

    async def _look(self) -> None:
        """Know the nodes, or go by those that were known where Ray does not say in time."""
        within_s = 0.0
        if self._looking is None:
            self._looking = asyncio.create_task(asyncio.to_thread(ray.nodes))
            within_s = self._timeout_s / 2
        await asyncio.wait([self._looking], timeout=within_s)
        if not self._looking.done():
            return
        looked, self._looking = self._looking, None
        try:
            self._nodes = looked.result()
        except Exception as error:  # of any kind: Ray may be on its way out
            logger.warning("Ray does not say which nodes there are: %r", error)

    def _answer(self, address: tuple[str, int]) -> str | None:
        task = self._asked[address]
        if not task.done():
            self._miss(address, "it is silent")
            return None
        del self._asked[address]
        error = task.exception()
        if error is not None:
            self._miss(address, error)
            return None
        self._hear(address)
        return task.result()

    def _miss(self, address: tuple[str, int], why: object) -> None:
        if address not in self._silent:
            logger.warning("no metrics from %s:%d, asked further on: %s", *address, why)
        self._silent.add(address)

    def _hear(self, address: tuple[str, int]) -> None:
        if address in self._silent:
            logger.info("metrics from %s:%d again", *address)
        self._silent.discard(address)


def _address(node: Mapping[str, Any]) -> tuple[str, int] | None:
    """Host and port of the agent of a node that lives."""
    port = node.get("MetricsExportPort") or 0
    return (node["NodeManagerAddress"], port) if node.get("Alive") and port > 0 else None


async def _text_of(host: str, port: int) -> str:
    """What an agent has; past any proxy of the environment, since this is the cluster's own.

    Raises:
        OSError, aiohttp.ClientError: it cannot be reached, speaks no HTTP, breaks off, says nothing
            for too long, or says that it has none.
    """
    url = URL.build(scheme="http", host=host, port=port, path="/metrics")
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_LONGEST_S))
    async with session, session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise OSError(f"it answers {response.status}")
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) >= _MAX_BYTES:
                break
    return body.decode("utf-8", "replace")
