"""One served model behind an ingress: the way to its stages, its gate, its warm-up, its health."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol

import numpy as np

from serve_app.config import AdmissionSettings
from serve_app.errors import StageUnavailable
from serve_app.http.health import STARTS_LATE, ModelStatus, State
from serve_app.http.served.application import Application
from serve_app.http.warm_up import WarmUp
from serve_app.load.admission import Admission
from serve_app.load.gate import Gate, StagePlaces
from serve_app.load.served import Served
from serve_app.protocols import VoiceEncoder
from serve_app.resumption import Observe, Policy, Resumable, resumed
from serve_app.types import ModelCard, PcmChunk, SpeechRequest

# What its replicas have at hand when an application goes is heard within so long, or not at all.
_LAST_S: Final = 1.0


class Way(Protocol):
    """The way from an ingress to the stages of one application; it stays when they are replaced."""

    @property
    def call(self) -> Resumable[PcmChunk]: ...

    async def ask(self) -> Served:
        """What is served; waits for a replica that has loaded it.

        Raises:
            SpeechError, or whatever a call raises: it cannot say so now.
        """
        ...

    @property
    def voice_encoder(self) -> VoiceEncoder:
        """What encodes recordings, where the card says that the checkpoint clones voices."""
        ...

    def stage(self, deployment: str, places: int) -> StagePlaces:
        """One of the stages, as far as this process knows it."""
        ...


class Model:
    """Learns what an application serves, lets requests in and makes the audio.

    Args:
        learn: told the card when it is known, and sets it; where it raises, all is tried again.
        passed: told that all stages have made speech, for the first time.
    """

    def __init__(
        self,
        application: Application,
        way: Way,
        policy: Policy,
        observe: Observe,
        learn: Callable[["Model", ModelCard], None],
        passed: Callable[[], None],
    ) -> None:
        self.application = application
        self.card: ModelCard | None = None
        self.served: Served | None = None
        self._way = way
        self._learn = learn
        self._tell_passed = passed
        self._gate: Gate | None = None
        self._admission: Admission | None = None
        self._passed: Resumable[PcmChunk] | None = None
        self.speak = resumed(self._call, policy, observe)
        # Not observed: it asks before there is a stage to lose.
        self._warm_up = WarmUp(self._ask, resumed(self._call, policy))
        self._warming: asyncio.Task[None] | None = None
        # Until when a first audio may come, once the application has gone, and who waits for one.
        self._last_s: float | None = None
        self._waiting: set[asyncio.Timeout] = set()

    @property
    def voice_encoder(self) -> VoiceEncoder:
        return self._way.voice_encoder

    def start(self) -> None:
        self._warming = asyncio.create_task(self._warm(self._warm_up.run))

    def renew(self, application: Application) -> None:
        """All replicas have been replaced, and serve the same with other settings: ask which, and
        go on meanwhile.
        """
        self.application = application
        self.stop()
        self._warming = asyncio.create_task(self._warm(self._warm_up.run_again))

    def stop(self) -> None:
        """No new requests; those under way go on as long as the stages do."""
        if self._warming is not None:
            self._warming.cancel()

    def retire(self) -> None:
        """The application has gone: as `stop`, and who has heard nothing yet waits no longer than
        its replicas need for what they have at hand.

        There may be none left, and no other will come.
        """
        self.stop()
        self._last_s = asyncio.get_running_loop().time() + _LAST_S
        for timer in self._waiting:
            timer.reschedule(self._last_s)

    async def first(self, chunks: AsyncGenerator[PcmChunk, None]) -> PcmChunk:
        """The first chunk of a stream of `speak`.

        Raises:
            StopAsyncIteration: there is none.
            StageUnavailable: the application has gone, and nothing has come.
        """
        timer = asyncio.timeout_at(self._last_s)
        self._waiting.add(timer)
        try:
            async with timer:
                return await anext(chunks)
        except TimeoutError:
            if not timer.expired():
                raise
            raise StageUnavailable("its application has gone") from None
        finally:
            self._waiting.discard(timer)

    def limit(self, settings: AdmissionSettings) -> None:
        """Change who may wait, from now on."""
        if self._admission is not None and self.served is not None:
            limits = self.served.about.limits
            queued, wait_s = settings.max_queued, settings.max_wait_s
            self._admission.limit(
                limits.max_queued if queued is None else queued,
                limits.max_wait_s if wait_s is None else wait_s,
            )

    def look(self, priority: int, counts: bool) -> None:
        """As `Gate.look`."""
        if self._gate is not None:
            self._gate.look(priority, counts=counts)

    def status(self) -> ModelStatus:
        application = self.application
        replicas = application.replicas
        # Without a voice encoder, which starts when it is needed, speech is made all the same.
        needed = {name: n for name, n in replicas.items() if name != STARTS_LATE}
        absent = [name for name, n in needed.items() if n["total"] and not n["ready"]]
        dead = [name for name in absent if name not in application.waking]
        state: State
        reason: str | None = None
        if not self._warm_up.passed:
            state, reason = "initializing", application.lacks or self._warm_up.reason
            if application.state == "starting":  # then it is what a replica has failed by
                reason = application.reason or reason
            if application.state == "failed" and self.card is None:
                state, reason = "unhealthy", application.reason or "it failed to start"
        elif dead:
            state = "unhealthy"
            reason = _joined(f"no running replica of {', '.join(dead)}", application.lacks)
        elif application.state == "failed":
            state, reason = "degraded", application.reason
        elif absent:
            state = "degraded"
            reason = _joined(f"waking up, requests wait: {', '.join(absent)}", application.lacks)
        elif any(n["ready"] < n["total"] for n in needed.values()):
            state, reason = "degraded", application.lacks
        else:
            state = "healthy"
        return ModelStatus(
            name=self.card.name if self.card is not None else application.label,
            application=application.name,
            state=state,
            reason=reason,
            replicas=replicas,
            info=self.served.about.info if self.served is not None else {},
        )

    async def _warm(self, warm_up: Callable[[], Awaitable[None]]) -> None:
        await warm_up()
        # What is known of its replicas is from before, when some were still starting.
        self._tell_passed()

    async def _ask(self) -> ModelCard:
        served = await self._way.ask()
        limits = served.about.limits
        stages = [self._way.stage(name, places) for name, places in limits.places]
        self.served = served
        if self._gate is None:
            self._admission = Admission(limits.max_queued, limits.max_wait_s)
            self._gate = Gate(stages, self._admission, model=served.card.name)
            self._passed = self._gate.into(self._way.call)
        else:
            # The streams that are inside stay counted; `learn` sets the limits.
            self._gate.lead_to(stages, served.card.name)
        self._learn(self, served.card)
        return served.card

    def _call(
        self, request: SpeechRequest, done: np.ndarray | None
    ) -> AsyncGenerator[PcmChunk, None]:
        if self._passed is None:
            raise StageUnavailable("the model has not said yet what it serves")
        return self._passed(request, done)


def _joined(*reasons: str | None) -> str:
    return "; ".join(filter(None, reasons))
