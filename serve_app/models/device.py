"""Where a stage computes and in which dtype: decided once, at start, and logged with the reason."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch

from serve_app.errors import StageUnavailable

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The device and dtype of one stage; `reason` says in words why."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def resolve_device(
    device: Literal["auto", "cuda", "cpu"] | str,
    dtype: Literal["auto", "float32", "bfloat16"] | str,
) -> DeviceSpec:
    """Turn the configured words into a device and a dtype.

    Raises:
        StageUnavailable: CUDA is asked for and this process sees no CUDA device.
        ValueError: a word that is no choice.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"device is {device!r}; it must be auto, cuda or cpu")
    if dtype != "auto" and dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be auto, float32 or bfloat16")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise StageUnavailable(
            "device is 'cuda' but this process sees no CUDA device; give the replica a GPU,"
            " or set device to 'cpu'"
        )
    chosen = (
        torch.device("cuda", torch.cuda.current_device())
        if available and device != "cpu"
        else torch.device("cpu")
    )
    why_device = f"device {device!r}: CUDA is {'present' if available else 'absent'}"
    if dtype == "auto":
        chosen_dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
        why_dtype = f"dtype 'auto' on {chosen.type}"
    else:
        chosen_dtype = _DTYPES[dtype]
        why_dtype = f"dtype {dtype!r} configured"
    resolved = DeviceSpec(chosen, chosen_dtype, f"{why_device}; {why_dtype}")
    logger.info("using %s with %s (%s)", resolved.device, resolved.dtype, resolved.reason)
    return resolved


def allow_tf32(allowed: bool) -> None:
    """Let float32 products on CUDA use TensorFloat-32 or not, in the whole process, for good.

    Other threads launch at the same time: what one of them restored would be another's change.
    """
    cudnn: Any = torch.backends.cudnn
    for flag in (torch.backends.cuda.matmul, cudnn.conv):
        flag.fp32_precision = "tf32" if allowed else "ieee"
