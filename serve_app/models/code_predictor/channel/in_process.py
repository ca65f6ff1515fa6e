"""The code predictor in the process that calls it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from serve_app.config import CodePredictorConfig
from serve_app.errors import StageUnavailable
from serve_app.models.checkpoint.spec import CodePredictorSpec
from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.code_predictor.model import CodePredictor
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import DeviceSpec, resolve_device

# Weights that stay in a processor's cache from pass to pass. Larger ones come from memory, whose
# speed decides then, and PyTorch's products are as good there.
_MOST_COMPILED_BYTES: Final = 24 << 20


def _pass_bytes(spec: CodePredictorSpec) -> int:
    """Return the bytes of all layers in float32."""
    shape = spec.transformer
    heads = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    return 4 * shape.num_layers * shape.hidden_size * (heads + 3 * shape.intermediate_size)


def _predictor_class(
    config: CodePredictorConfig, place: DeviceSpec, spec: CodePredictorSpec
) -> Callable[..., CodePredictor]:
    """The fused kernels are for CUDA, bfloat16 and widths such as the releases have.

    A small model is compiled for the CPU in float32; everything else is eager.
    """
    shape = spec.transformer
    widths = (shape.hidden_size, shape.intermediate_size, shape.num_kv_heads * shape.head_dim)
    suitable = all(width % 512 == 0 for width in widths) and shape.head_dim == 128
    on_cuda = place.device.type == "cuda" and place.dtype == torch.bfloat16
    if config.kernels == "eager" or not (suitable and on_cuda):
        if config.deterministic and place.device.type == "cuda":
            raise StageUnavailable(
                "deterministic needs bfloat16, a checkpoint of a released shape, and not"
                " code_predictor.kernels: eager"
            )
        if (
            config.kernels == "auto"
            and (place.device.type, place.dtype) == ("cpu", torch.float32)
            and _pass_bytes(spec) <= _MOST_COMPILED_BYTES
        ):
            from serve_app.models.code_predictor.compiled import CompiledCodePredictor

            return CompiledCodePredictor
        return CodePredictor
    from serve_app.models.code_predictor.fast import DETERMINISTIC, FastCodePredictor

    return partial(FastCodePredictor, plan=DETERMINISTIC if config.deterministic else None)


class InProcessFrames:
    """One CUDA graph per batch size on a GPU; on a CPU a compiled function or an eager one."""

    reached_s = -math.inf

    def __init__(
        self, predictor: CodePredictor, hidden_dtype: torch.dtype, batch_sizes: tuple[int, ...]
    ) -> None:
        self.predictor = predictor
        self.hidden_dtype = hidden_dtype
        width, device = predictor.spec.talker_hidden_size, predictor.device

        def inputs(rows: int) -> tuple[Tensor, ...]:
            return FrameBatch.zeros(rows, width, hidden_dtype, device).tensors()

        self.batch_sizes = batch_sizes
        self.run = BatchGraphs(inputs, predictor.frame, batch_sizes, enabled=device.type == "cuda")

    @classmethod
    def load(cls, checkpoint: Any, config: CodePredictorConfig, device: str) -> "InProcessFrames":
        """Build the predictor of `checkpoint` (serve_app.models.checkpoint.files.Checkpoint)."""
        place = resolve_device(device, config.dtype)  # type: ignore[arg-type]
        tensors = checkpoint.tensors("talker.code_predictor.")
        codec = checkpoint.tensors("talker.model.codec_embedding.")["weight"]
        with torch.inference_mode():
            spec = checkpoint.spec.code_predictor
            predictor = _predictor_class(config, place, spec)(
                spec, tensors, codec, place.device, place.dtype
            )
            return cls(predictor, place.dtype, config.batch_sizes)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs of `predict`.

        A talker that captures `predict_eager` in its own does not need them.
        """
        device = self.predictor.device
        if device.type == "cuda":
            with torch.cuda.stream(torch.cuda.Stream(device)):
                self.run.capture_all()
                torch.cuda.current_stream().synchronize()

    @torch.inference_mode()
    def rehearse(self) -> None:
        """Make frames of every size, whole and not; nothing on a CPU, where no frame is a first."""
        device, width = self.predictor.device, self.predictor.spec.talker_hidden_size
        if device.type != "cuda":
            return
        for most in self.run.batch_sizes:
            for rows in {most, max(1, most - 1)}:
                self.predict(FrameBatch.zeros(rows, width, self.hidden_dtype, device))
        torch.cuda.synchronize(device)

    @torch.inference_mode()
    def predict(self, batch: FrameBatch) -> Tensor:
        hidden, *rest = batch.tensors()
        return self.run(hidden.to(self.hidden_dtype), *rest)

    def predict_eager(self, batch: FrameBatch) -> Tensor:
        """`predict` as plain tensor code, for a caller that captures it together with its own."""
        hidden, *rest = batch.tensors()
        return self.predictor.frame(hidden.to(self.hidden_dtype), *rest)

    def close(self) -> None:
        """Free the graphs; idempotent."""
        self.run.close()
