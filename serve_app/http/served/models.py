"""All models behind one ingress: they come and go while it runs, and none is in another's way."""

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from serve_app import metrics
from serve_app.config import AdmissionSettings
from serve_app.errors import Full, Overloaded, StageUnavailable, UnknownModel
from serve_app.http.catalog import Catalog
from serve_app.http.health import ModelStatus
from serve_app.http.served.application import Application
from serve_app.http.served.model import Model, Way
from serve_app.pipeline import timed
from serve_app.protocols import VoiceEncoder
from serve_app.resumption import Observe, Policy
from serve_app.types import REPLICA_WAIT, ModelCard, PcmChunk, SpeechRequest

# For the default where none is stated: what most requests are meant for.
_TASKS: Final = ("custom_voice", "voice_design", "base")

logger = logging.getLogger(__name__)


class Models:
    """Follows the applications that there are, and leads each request to its model's stages.

    Args:
        catalog: kept true: which cards there are, and which models are starting.
        connect: the way to an application's stages, by its name and that of its entry; the same way
            for the same names, as often as it is asked for.
        observe: told of losses of streams.
        own: the application whose model is the default where none is stated.
        passed: told when a model has spoken for the first time: what was known of its replicas
            before is out of date.
    """

    def __init__(
        self,
        catalog: Catalog,
        connect: Callable[[str, str], Way],
        policy: Policy,
        recorder: metrics.Recorder,
        observe: Observe,
        own: str | None = None,
        passed: Callable[[], None] = lambda: None,
    ) -> None:
        self._catalog = catalog
        self._connect = connect
        self._policy = policy
        self._recorder = recorder
        self._observe = observe
        self._own = own
        self._passed = passed
        self._models: dict[str, Model] = {}
        # Those that have no replica yet, or none but of what they were before, which would answer.
        self._awaited: dict[str, Application] = {}
        self._replaced: set[str] = set()
        self._settings: Mapping[str, AdmissionSettings] = {}
        self._others = AdmissionSettings()

    def follow(self, applications: Iterable[Application]) -> None:
        """These are all applications that there are now."""
        found = {a.name: a for a in applications if a.entry and a.state != "stopping"}
        for name, model in list(self._models.items()):
            now = found.get(name)
            if now is None:
                self._retire(name, "it is gone")
            elif (now.version, now.entry) != (model.application.version, model.application.entry):
                if model.card is None or not now.is_same_model(model.application):
                    self._retire(name, "it is replaced")
                    self._replaced.add(name)
                elif now.state == "starting":
                    # Replica by replica: there is always one that serves it.
                    version = model.application.version
                    model.application = replace(now, version=version)
                else:
                    model.renew(now)
            else:
                model.application = _with_last_reason(now, model.application)
        self._replaced &= found.keys()
        self._awaited = {}
        for name, application in found.items():
            if name in self._models:
                continue
            is_old = name in self._replaced and application.state == "starting"
            if application.replicas and not is_old:
                self._replaced.discard(name)
                self._begin(application)
            else:
                self._awaited[name] = application
        self._expect()

    def limit(
        self, settings: Mapping[str, AdmissionSettings], others: AdmissionSettings | None = None
    ) -> None:
        """Change who may wait for which model (by served name), and for those not named."""
        self._settings = {name.casefold(): setting for name, setting in settings.items()}
        self._others = others or AdmissionSettings()
        for model in self._models.values():
            self._limit(model)

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[PcmChunk, None]:
        """A `Speak` for any of them; raises UnknownModel where the model has gone meanwhile."""
        model, begun = self._named(request.model), False
        if model is not None:
            try:
                calls = timed(REPLICA_WAIT, model.speak(request), beyond="stages")
                async with aclosing(calls) as chunks:
                    first = await model.first(chunks)
                    begun = True
                    yield first
                    async for chunk in chunks:
                        yield chunk
                return
            except StopAsyncIteration:
                return
            except StageUnavailable:
                # Its stages may have ended before it was known that it goes.
                if begun or self._named(request.model) is not None:
                    raise
        raise UnknownModel(
            f"The model '{request.model}' is not served any more.", "model", "model_not_found"
        )

    def encoder_of(self, card: ModelCard) -> VoiceEncoder | None:
        """What encodes recordings for a model; None: it clones no voices, or has gone."""
        model = self._named(card.name)
        if model is None or card.speaker_vector_size is None:
            return None
        return model.voice_encoder

    def look(self, priority: int = 0) -> None:
        """Before it is known which model a request is for: of several, none counts it for its own
        until it is called.

        Raises:
            Overloaded: none could let it in now; of several, the one that can first.
        """
        known = [(model, model.card) for model in self._models.values() if model.card is not None]
        refusals: list[tuple[Overloaded, str]] = []
        for model, card in known:
            try:
                model.look(priority, counts=len(known) == 1)
                return
            except Overloaded as error:
                refusals.append((error, card.name))
        if refusals:
            # Full only where all are.
            error, name = min(
                refusals, key=lambda found: (isinstance(found[0], Full), found[0].retry_after_s)
            )
            self._recorder.count(metrics.REFUSED_AT_INGRESS, model=name)
            raise error

    @property
    def applications(self) -> dict[str, str]:
        """Of the models that have said their names, by these."""
        models = self._models.values()
        return {m.card.name: m.application.name for m in models if m.card is not None}

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Of all, the default first."""
        order = {card.name: place for place, card in enumerate(self._catalog.cards)}
        statuses = [model.status() for model in self._models.values()]
        statuses += [_awaited(application) for application in self._awaited.values()]
        return tuple(sorted(statuses, key=lambda s: (order.get(s.name, len(order)), s.name)))

    def close(self) -> None:
        for model in self._models.values():
            model.stop()

    def _begin(self, application: Application) -> None:
        way = self._connect(application.name, application.entry)
        model = Model(
            *(application, way, self._policy, self._observe),
            learn=self._learn,
            passed=self._passed,
        )
        self._models[application.name] = model
        self._limit(model)
        model.start()
        logger.info("application '%s': asking what it serves", application.name)

    def _retire(self, name: str, why: str) -> None:
        model = self._models.pop(name)
        model.retire()
        if model.card is not None:
            self._catalog.remove(model.card.name)
        logger.info("application '%s': no new requests, %s", name, why)

    def _learn(self, model: Model, card: ModelCard) -> None:
        other = self._named(card.name)
        if other is not None and other is not model:
            raise StageUnavailable(
                f"application '{other.application.name}' serves a model of the same name,"
                f" '{card.name}'"
            )
        name = model.application.name
        if model.card is not None and model.card.name != card.name:
            self._catalog.remove(model.card.name)
        self._catalog.add(card, (name != self._own, _TASKS.index(card.task), card.name))
        model.card = card
        self._limit(model)
        self._expect()
        logger.info("application '%s' serves '%s' (%s)", name, card.name, card.task)

    def _limit(self, model: Model) -> None:
        name = model.card.name if model.card is not None else model.application.label
        model.limit(self._settings.get(name.casefold(), self._others))

    def _expect(self) -> None:
        coming = [m.application for m in self._models.values() if m.card is None]
        coming += self._awaited.values()
        # Of one that has failed nothing comes by itself.
        unnamed = any(not a.is_named and a.state != "failed" for a in coming)
        self._catalog.expect({a.label: a.known_as for a in coming}, unnamed)

    def _named(self, name: str) -> Model | None:
        found = (m for m in self._models.values() if m.card is not None and m.card.name == name)
        return next(found, None)


def _with_last_reason(now: Application, before: Application) -> Application:
    """What a replica has failed by holds until the next one has started: Serve forgets it while
    that takes long.
    """
    if now.reason is None and now.state == before.state == "starting":
        return replace(now, reason=before.reason)
    return now


def _awaited(application: Application) -> ModelStatus:
    """Of an application whose stages cannot be asked yet."""
    failed = application.state == "failed"
    why = application.reason if application.state in ("failed", "starting") else None
    return ModelStatus(
        application.label,
        application.name,
        "unhealthy" if failed else "initializing",
        why or ("it failed to start" if failed else "its replicas are starting"),
        application.replicas,
    )
