"""The stages of placement `split`, each in a process of its own and ready when it is returned.
`start_times` says then what took how long.

Ready means that a request is no first: kernels are compiled, graphs captured but for the decoder's
large ones, and every size of load has been gone through. Blocking; not where an event loop runs.
"""

from typing import TYPE_CHECKING

import torch

from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.models.kernel_cache.ahead import fill_ahead
from serve_app.models.late_kernels import late_kernels
from serve_app.models.start_times import start_times

if TYPE_CHECKING:
    from serve_app.models.code_predictor.channel.contract import FrameSessions
    from serve_app.models.code_predictor.channel.server import FrameServer
    from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder
    from serve_app.models.talker.engine import VllmTalker


def ready_talker(
    checkpoint: Checkpoint, config: AppConfig, device: str, predictors: "FrameSessions"
) -> "VllmTalker":
    """A talker, which waits for a code predictor to rehearse with.

    Raises:
        CheckpointError, SpeechError: checkpoint, device or code predictor are unusable.
    """
    kernels_are_compiled = fill_ahead(device)
    from serve_app.models.code_predictor.channel.client import RemoteFrames
    from serve_app.models.talker.engine import VllmTalker
    from serve_app.models.talker.vllm.core import import_engine

    import_engine(torch.device(device))
    start_times.lap("imports")
    kernels_are_compiled()
    start_times.lap("kernels")
    frames = RemoteFrames(
        predictors,
        num_code_groups=checkpoint.spec.talker.num_code_groups,
        max_rows=config.talker.max_num_seqs,
        channel=config.code_predictor.channel,
    )
    chunk_frames = config.speech_decoder.chunk_frames
    talker = VllmTalker(checkpoint, config.talker, device, frames, chunk_frames)
    if device == "cuda":
        talker.rehearse()
        late_kernels.watch()
    start_times.lap("rehearsal")
    return talker


def ready_predictor(
    checkpoint: Checkpoint, config: AppConfig, device: str, host: str = "127.0.0.1"
) -> "FrameServer":
    """A frame server, not yet open.

    Raises:
        CheckpointError, StageUnavailable: the checkpoint or the device is unusable.
    """
    kernels_are_compiled = fill_ahead(device)
    from serve_app.models.code_predictor.channel.server import FrameServer

    start_times.lap("imports")
    kernels_are_compiled()
    start_times.lap("kernels")
    server = FrameServer.load(checkpoint, config.code_predictor, device, host)
    if device == "cuda":
        late_kernels.watch()
    start_times.lap("code predictor")
    return server


def ready_decoder(
    checkpoint: Checkpoint, config: AppConfig, device: str
) -> "StreamingSpeechDecoder":
    """A speech decoder, which captures its large graphs from now on.

    Raises:
        CheckpointError, StageUnavailable: the checkpoint or the device is unusable.
    """
    kernels_are_compiled = fill_ahead(device)
    from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder

    start_times.lap("imports")
    kernels_are_compiled()
    start_times.lap("kernels")
    decoder = StreamingSpeechDecoder.load(checkpoint, config.speech_decoder, device)
    if device == "cuda":
        decoder.rehearse(config.speech_decoder.chunk_frames)
        late_kernels.watch()
    start_times.lap("rehearsal")
    decoder.runner.capture_rest()
    return decoder
