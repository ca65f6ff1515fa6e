"""What vLLM's scheduler counts of requests that go on, in arrays instead of in 256 objects.

While a request goes on, a step changes four numbers and adds an id. Here all requests are counted
forward at once, and vLLM's own object of a request lags behind until something else happens to it:
whoever needs it has it settled before.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Any, Final

import numpy as np
from vllm.v1.request import Request, RequestStatus

# Ids of a request that are kept back from its object; then all are settled.
_MOST_OWED: Final = 64


class Counters:
    """Members and their counters; members are always the first of the requests that run.

    Args:
        capacity: members at once.
        longest: tokens that a request can have.
    """

    def __init__(self, capacity: int, longest: int) -> None:
        self._longest = longest
        # Of members, in the order in which they run.
        self.requests: list[Request] = []
        self._names: list[str] = []
        self._order = np.zeros(0, np.int64)
        self._lane: dict[str, int] = {}
        self._free = list(reversed(range(capacity)))
        # By lane: positions computed, ids that are still to come, tokens in flight, positions of
        # the prompt, positions at the end, the id that ends it, ids owed to its object.
        (
            self._computed,
            self._ahead,
            self._in_flight,
            self._prompt,
            self._end,
            self._stop,
            self._owed,
        ) = np.zeros((7, capacity), np.int64)
        self._ids = np.zeros((capacity, _MOST_OWED), np.int64)

    def __len__(self) -> int:
        return len(self.requests)

    def __contains__(self, name: str) -> bool:
        return name in self._lane

    def admits(self, request: Request) -> bool:
        """Whether nothing but the next frame can happen to a request that goes on.

        That is false until its first frame has been seen, and behind a preemption while ids from
        before it may still come.
        """
        params = request.sampling_params
        return (
            request.prefill_stats is None
            and not request.num_stale_output_tokens
            and request.status is RequestStatus.RUNNING
            and params is not None
            and len(params.stop_token_ids or ()) == 1
        )

    def join(self, request: Request) -> None:
        """Count a request here from now on; it runs behind all members."""
        lane = self._free.pop()
        self.requests.append(request)
        self._names.append(request.request_id)
        self._order = np.append(self._order, lane)
        self._lane[request.request_id] = lane
        self._computed[lane] = request.num_computed_tokens
        self._ahead[lane] = request.num_output_placeholders
        self._in_flight[lane] = request.num_in_flight_tokens
        self._prompt[lane] = request.num_prompt_tokens
        self._end[lane] = request.num_prompt_tokens + request.max_tokens
        params: Any = request.sampling_params
        (self._stop[lane],) = params.stop_token_ids
        self._owed[lane] = 0

    def leave(self, name: str) -> None:
        """Give a request back to its object; nothing happens to one that is no member."""
        lane = self._lane.pop(name, None)
        if lane is None:
            return
        place = self._names.index(name)
        self._settle(self.requests[place], lane)
        del self.requests[place], self._names[place]
        self._order = np.delete(self._order, place)
        self._free.append(lane)

    def leave_all(self) -> None:
        for name in list(self._names):
            self.leave(name)

    def due(self) -> np.ndarray:
        """bool [members]: who gets another position, of those whose last is not computed yet."""
        computed, ahead = self._computed[self._order], self._ahead[self._order]
        at_end = (ahead > 0) & (computed + 2 - ahead >= self._end[self._order])
        return ~at_end & (computed < self._longest - 1)

    def opening(self, due: np.ndarray, block: int) -> list[int]:
        """Places, among those of `due`, of who needs another block of `block` positions."""
        return np.flatnonzero(self._computed[self._order[due]] % block == 0).tolist()

    def settled(self, due: np.ndarray, places: Iterable[int]) -> Iterator[tuple[int, Request]]:
        """Each of `places` among those of `due`, with its request, whose object is right."""
        requests, lanes = list(compress(self.requests, due)), self._order[due]
        for place in places:
            self._settle(requests[place], int(lanes[place]))
            yield place, requests[place]

    def count_forward(self, due: np.ndarray) -> tuple[list[str], list[int], list[int]]:
        """Give each of `due` its next position: names, positions and numbers of ids before."""
        lanes = self._order[due]
        computed = self._computed[lanes]
        made = computed + 1 - self._prompt[lanes]
        self._computed[lanes] += 1
        self._ahead[lanes] += 1
        self._in_flight[lanes] += 1
        return list(compress(self._names, due)), computed.tolist(), made.tolist()

    def take(
        self, names: Sequence[str], tokens: Sequence[int], sampled: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Count what a step has sampled, of members for which it means one more frame to come.

        Args:
            names: of any requests.
            tokens: that the step computed, of each.
            sampled: ids, of each.

        Returns:
            bool [names]: who was counted.
        """
        lane_of = self._lane
        lanes = np.array([lane_of.get(name, -1) for name in names], np.int64)
        ids = np.array([one[0] if len(one) == 1 else -1 for one in sampled], np.int64)
        # With the id that has come.
        length = self._computed[lanes] - self._ahead[lanes] + 2
        counted = (
            (lanes >= 0)
            & (ids >= 0)
            & (ids != self._stop[lanes])
            & (length < self._end[lanes])
            & (length < self._longest)
        )
        lanes = lanes[counted]
        if len(lanes):
            self._in_flight[lanes] -= np.array(tokens, np.int64)[counted]
            self._ahead[lanes] -= 1
            owed = self._owed[lanes]
            self._ids[lanes, owed] = ids[counted]
            self._owed[lanes] = owed + 1
            if owed.max() + 1 == _MOST_OWED:
                for request, lane in zip(self.requests, self._order.tolist(), strict=True):
                    self._settle(request, lane)
        return counted

    def _settle(self, request: Request, lane: int) -> None:
        request.num_computed_tokens = int(self._computed[lane])
        request.num_output_placeholders = int(self._ahead[lane])
        request.num_in_flight_tokens = int(self._in_flight[lane])
        # What `append_output_token_ids` does; without prefix caching there are no hashes.
        ids = self._ids[lane, : self._owed[lane]].tolist()
        request._output_token_ids.extend(ids)
        request._all_token_ids.extend(ids)
        self._owed[lane] = 0
