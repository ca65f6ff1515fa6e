"""The metrics that Ray's agents have gathered, one agent per node."""

import asyncio
import logging
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any, Final
from urllib.error import URLError

import ray

_TIMEOUT_S: Final = 3.0
# Who asks more often gets the same again: an agent hears of its processes less often still.
_MAX_AGE_S: Final = 1.0
_MAX_BYTES: Final = 32 << 20

logger = logging.getLogger(__name__)


class Agents:
    """Reads all agents at once; one that does not answer is left out."""

    def __init__(self) -> None:
        self._texts: Sequence[str] = ()
        self._read_s = float("-inf")
        self._reading = asyncio.Lock()

    async def texts(self) -> Sequence[str]:
        """In Prometheus' format, each with everything of its node."""
        loop = asyncio.get_running_loop()
        async with self._reading:
            if loop.time() - self._read_s > _MAX_AGE_S:
                nodes = await asyncio.to_thread(ray.nodes)
                reads = [asyncio.to_thread(_read, address) for address in map(_address, nodes)]
                self._texts = [text for text in await asyncio.gather(*reads) if text]
                self._read_s = loop.time()
        return self._texts


def _address(node: dict[str, Any]) -> str | None:
    port = node.get("MetricsExportPort") or 0
    if not node.get("Alive") or port <= 0:
        return None
    host = node["NodeManagerAddress"]
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


def _read(address: str | None) -> str:
    if address is None:
        return ""
    # Past any proxy of the environment: this is the cluster's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=_TIMEOUT_S) as answer:
            return answer.read(_MAX_BYTES).decode("utf-8", "replace")
    except (URLError, HTTPException, OSError, ValueError) as error:
        logger.warning("no metrics from %s: %s", address, error)
        return ""
