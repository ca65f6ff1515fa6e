"""A client that remembers what became of its requests, and judges the audio."""

import asyncio
from collections.abc import Callable

from load_tests.chaos.compare import References
from load_tests.chaos.outcomes import Outcome, Turn
from load_tests.loops.client import EAGER, Manner, RequestResult, SpeechClient
from load_tests.loops.workload import SpeechCall


class Listener(SpeechClient):
    """A `SpeechClient` whose requests become outcomes of `turn`.

    Args:
        distinct: as of the workload: calls with the same remainder are the same request.
        manner: how request `index` is read.
        teach: whether what comes complete is the undisturbed stream.
        patient: whether who gets no answer waits before asking again, as told or a second: a
            closed loop that does not would ask thousands of times while a replica starts.
    """

    def __init__(
        self,
        *client: object,
        turn: Turn,
        references: References,
        distinct: int,
        manner: Callable[[int], Manner] = lambda index: EAGER,
        teach: bool = False,
        patient: bool = False,
        **options: object,
    ) -> None:
        super().__init__(*client, **options)  # pyright: ignore[reportArgumentType]
        self._turn = turn
        self._references = references
        self._distinct = distinct
        self._manner_of = manner
        self._teach = teach
        self._patient = patient

    async def speak(
        self,
        call: SpeechCall,
        scheduled_at_s: float | None = None,
        manner: Manner | None = None,
        sink: bytearray | None = None,
    ) -> RequestResult:
        manner = self._manner_of(call.index) if manner is None else manner
        body = bytearray() if sink is None else sink
        result = await super().speak(call, scheduled_at_s, manner, body)
        number = call.index % self._distinct
        outcome = Outcome(
            self._turn.phase, number, result, body=bytes(body), self_paced=manner.is_self_paced
        )
        self._turn.outcomes.append(outcome)
        if self._teach and result.ok:
            self._references.learn(number, outcome.body)
        judge(outcome, self._references)
        if self._patient and outcome.fate in ("refused", "lost"):
            await asyncio.sleep(result.retry_after_s or 1.0)
        return result


def judge(outcome: Outcome, references: References) -> None:
    """Compare an outcome's audio where its reference is known, and let go of it."""
    if outcome.number in references:
        if outcome.body:
            outcome.comparison = references.check(outcome.number, outcome.body)
        outcome.body = b""
    elif not references.wanted:
        outcome.body = b""
