"""What every way in shares: from the fields of a request to a job, whatever carried them."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serve_app.audio.output import Output
from serve_app.config import IngressConfig
from serve_app.http.catalog import Catalog
from serve_app.http.speech.body import parse
from serve_app.http.speech.checks import checked_format
from serve_app.http.speech.request import engine_request_id, find_model, ignored, to_domain
from serve_app.types import ModelCard, SpeechRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request and what its response needs to know.

    Attributes:
        warning: what of the request is ignored.
        timings: filled with those of the first audio when it comes.
    """

    request: SpeechRequest
    card: ModelCard
    output: Output
    transport: Literal["stream", "file"]
    start_s: float
    warning: str | None = None
    timings: list[tuple[str, float]] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        return {"format": self.output.format, "transport": self.transport}


class Speech:
    """Checks what is asked for against what is served."""

    def __init__(
        self,
        catalog: Catalog,
        config: IngressConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._catalog = catalog
        self._config = config
        self.clock = clock

    def accept(self, fields: Mapping[str, Any], client_id: str | None = None) -> Job:
        """The job that `fields` (those of `SpeechBody`) ask for.

        Raises:
            InvalidRequest: a field is wrong, or the model cannot do what it says.
            UnknownModel: no served model has the name.
            StageUnavailable: nothing is served yet.
        """
        start_s = self.clock()
        body = parse(fields)
        card = find_model(body, self._catalog)
        request = to_domain(body, card, self._config, engine_request_id(client_id))
        warning = ignored(body, request)
        if warning is not None:
            logger.warning("%s: %s", request.request_id, warning)
        transport = "file" if body.stream is False else "stream"
        output = Output(
            checked_format(body), card.sample_rate_hz, body.sample_rate, body.speed or 1.0
        )
        return Job(request, card, output, transport, start_s, warning)
