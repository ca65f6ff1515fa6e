"""All stages of a placement in this process, as `record` and tests on a GPU need them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.pipeline import synthesize
from serve_app.resumption import Resumed
from serve_app.types import PcmChunk

if TYPE_CHECKING:
    from serve_app.models.code_predictor.channel.contract import FrameEndpoint
    from serve_app.models.code_predictor.channel.server import FrameServer


class _Here:
    """`FrameSessions` that always name one server."""

    is_over = False

    def __init__(self, server: "FrameServer") -> None:
        self._server = server

    def connect(self, node: str) -> "FrameEndpoint":
        return self._server.endpoint(node)


@contextmanager
def started(checkpoint: Checkpoint, config: AppConfig, device: str) -> Iterator[Resumed[PcmChunk]]:
    """Start the stages of `config.placement`, ready and with every graph captured."""
    if config.placement == "fused":
        from serve_app.models.fused.speech import FusedSpeech

        speech = FusedSpeech.load(checkpoint, config, device)
        try:
            speech.decoder.runner.wait_until_captured()
            yield speech.speak
        finally:
            speech.close()
        return

    from serve_app.models import split

    with split.ready_predictor(checkpoint, config, device).serve() as server:
        # Memory of a GPU cannot be shared with the process that one is.
        channel = config.code_predictor.model_copy(update={"channel": "socket"})
        near = config.model_copy(update={"code_predictor": channel})
        talker = split.ready_talker(checkpoint, near, device, _Here(server))
        # Last: it goes on to capture on a thread, which a talker that is being loaded would spoil.
        decoder = split.ready_decoder(checkpoint, config, device)
        try:
            decoder.runner.wait_until_captured()
            yield partial(synthesize, talker, decoder)
        finally:
            talker.close()
            decoder.close()
