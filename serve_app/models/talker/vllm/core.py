"""vLLM's engine core as the talker uses it: its environment, its configuration, its construction.

See docs/decisions/0001-in-process-engine.md for why the core is not in a process of its own.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from serve_app.config import TalkerConfig
from serve_app.models.checkpoint.spec import TransformerSpec
from serve_app.models.device import DeviceSpec
from serve_app.models.talker.runtime import RUNTIME_KEY

# Free memory that vLLM may find besides what it reserves itself; see `_configuration`.
_RESERVE_BYTES: Final = 3 * 2**30


def build_core(checkpoint: Any, config: TalkerConfig, place: DeviceSpec, runtime_key: str) -> Any:
    """Build a `vllm.v1.engine.core.EngineCore`, with the CUDA graphs that `config` asks for.

    Args:
        checkpoint: serve_app.models.checkpoint.files.Checkpoint.
        config: engine settings.
        place: device and dtype.
        runtime_key: of `runtime.RUNTIMES`, where state and scheduler find their runtime.
    """
    _prepare_environment(place)
    with _without_collections():
        from vllm import ModelRegistry
        from vllm.plugins import load_general_plugins
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor.abstract import Executor

        from serve_app.models.talker.vllm.model import TalkerForVllm
        from serve_app.models.talker.vllm.plugin import ARCHITECTURE, register

        load_general_plugins()
        register()
        # Registered as a class: by name, vLLM would inspect it in a subprocess that imports vLLM
        # once more.
        ModelRegistry.register_model(ARCHITECTURE, TalkerForVllm)
        if place.device.type == "cpu":
            from serve_app.models.talker.vllm import cpu_kernels

            cpu_kernels.install()
        # A million objects that stay: vLLM, which collects some ten times while it loads, would go
        # through them each time (0.3 to 0.5 s).
        gc.freeze()
        vllm_config = _configuration(checkpoint, config, place, runtime_key)
        with torch.inference_mode():
            return EngineCore(vllm_config, Executor.get_class(vllm_config), log_stats=False)


def _prepare_environment(place: DeviceSpec) -> None:
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    # The uniprocess executor is refused on CPU unless multiprocessing is off; there is one
    # process anyway.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    # Else vLLM ends its capture by giving back to the collector what `build_core` has frozen;
    # collections during a capture, which this is about, do not happen there.
    os.environ["VLLM_ENABLE_CUDAGRAPH_GC"] = "1"
    if place.device.type == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@contextmanager
def _without_collections() -> Iterator[None]:
    """Let Python collect no garbage by itself, in the whole process."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _configuration(
    checkpoint: Any, config: TalkerConfig, place: DeviceSpec, runtime_key: str
) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from serve_app.models.talker.vllm.scheduler import FrameScheduler

    cuda = place.device.type == "cuda"
    kv_bytes = _kv_cache_bytes(config, checkpoint.spec.talker.transformer, place.dtype)
    settings: dict[str, Any] = {}
    if config.block_size is not None:
        settings["block_size"] = config.block_size
    if cuda:
        # vLLM refuses to start unless this share of the whole card is free; what it takes is
        # fixed by the KV bytes.
        total = torch.cuda.get_device_properties(place.device).total_memory
        weights = sum(f.stat().st_size for f in checkpoint.path.glob("*.safetensors"))
        needed = weights + kv_bytes + _RESERVE_BYTES
        settings["gpu_memory_utilization"] = min(0.95, needed / total)
    graphs = cuda and config.cuda_graphs
    args = EngineArgs(
        model=str(checkpoint.path),
        skip_tokenizer_init=True,
        dtype=str(place.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=kv_bytes,
        enforce_eager=not graphs,
        compilation_config={"mode": 0, "cudagraph_mode": "FULL" if graphs else "NONE"},  # type: ignore[arg-type]
        additional_config={RUNTIME_KEY: runtime_key},
        scheduler_cls=FrameScheduler,
        disable_log_stats=True,
        **settings,
    )
    vllm_config = args.create_engine_config()
    # vLLM's CPU platform switches asynchronous scheduling off; the talker runs the same way
    # everywhere.
    vllm_config.scheduler_config.async_scheduling = True
    return vllm_config


def _kv_cache_bytes(config: TalkerConfig, shape: TransformerSpec, dtype: torch.dtype) -> int:
    """The KV pool: as configured, else room for a quarter of max_num_seqs requests of full
    length.
    """
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize
    requests = max(2, config.max_num_seqs // 4)
    return requests * config.max_model_len * per_token
