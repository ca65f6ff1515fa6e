"""vLLM's engine core as the talker uses it: its environment, its configuration, its requests.

See docs/decisions/0001-in-process-engine.md for why the core is not in a process of its own.
"""

import gc
import os
import secrets
import time
from typing import Any, Final

import torch

from serve_app.config import TalkerConfig
from serve_app.models.checkpoint.spec import TalkerSpec
from serve_app.models.cuda_graph import without_collections
from serve_app.models.device import DeviceSpec
from serve_app.models.memory.pool import kv_cache_bytes
from serve_app.models.start_times import start_times
from serve_app.models.talker.runtime import (
    DETERMINISTIC_KEY,
    PROMPT_KEY,
    RUNTIME_KEY,
    RUNTIMES,
    TalkerPrompt,
    TalkerRuntime,
)
from serve_app.models.talker.vllm.stepper import Stepper

# Free memory that vLLM may find besides what it reserves itself; see `_configuration`.
_RESERVE_BYTES: Final = 3 * 2**30
_OF_FREE: Final = 0.98


class TalkerCore:
    """A `vllm.v1.engine.core.EngineCore`, fed and stepped by hand on the thread that built it.

    Args:
        engine: the EngineCore.
        spec: of the talker.
        runtime_key: of `RUNTIMES`, where vLLM's hooks found theirs.
        late: as for `Stepper`.
    """

    def __init__(self, engine: Any, spec: TalkerSpec, runtime_key: str, *, late: bool) -> None:
        self.engine = engine
        self.stepper = Stepper(engine, late=late)
        self._spec = spec
        self._runtime_key = runtime_key

    @property
    def runner(self) -> Any:
        """vLLM's model runner, whose `model`, `sampler` and `model_state` are ours."""
        return self.engine.model_executor.driver_worker.worker.model_runner

    def add(self, request_id: str, work: TalkerPrompt) -> None:
        """Hand a request to the scheduler; raises what vLLM raises of one that it does not take."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        prompt, done = work.prompt, work.done
        # Ids stand in for positions: vLLM counts them, the state builds the embeddings. They are
        # control ids, which can never be sampled.
        ids = [self._spec.codec_pad_id] * (len(prompt.rows) + len(done))
        params = SamplingParams(
            max_tokens=prompt.max_new_tokens - len(done),
            stop_token_ids=[self._spec.codec_eos_id],
            detokenize=False,
            extra_args={PROMPT_KEY: work},
        )
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=ids,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            priority=round(1000 * work.due_s),
        )
        self.engine.add_request(*self.engine.preprocess_add_request(request))

    def abort(self, request_id: str) -> None:
        """End a request; nothing happens to one that is not there any more."""
        self.engine.abort_requests([request_id])

    def load(self) -> tuple[int, int, float]:
        """Requests that run, requests that wait, and the share of the KV pool in use."""
        scheduler = self.engine.scheduler
        usage = scheduler.kv_cache_manager.usage
        return len(scheduler.running), len(scheduler.waiting), usage

    def shutdown(self) -> None:
        graphs = self.runner.sampler.graphs
        try:
            self.engine.shutdown()  # which waits for the device
        finally:
            # Not left to the collector, which might destroy them while others are captured.
            if graphs is not None:
                graphs.close()
            RUNTIMES.pop(self._runtime_key, None)


def import_engine(device: torch.device) -> None:
    """Import vLLM, which takes seconds, and what it is given, before the engine is built."""
    _prepare_environment(device)
    with without_collections():
        import vllm.engine.arg_utils
        import vllm.v1.engine.core

        from serve_app.models.talker.vllm import model, state  # noqa: F401
        from serve_app.models.talker.vllm.scheduling import scheduler  # noqa: F401

        if device.type == "cuda":
            import vllm.v1.worker.gpu_worker
        else:
            import vllm.v1.worker.cpu_worker  # noqa: F401


def build_core(
    checkpoint: Any, config: TalkerConfig, place: DeviceSpec, runtime: TalkerRuntime
) -> TalkerCore:
    """Build the core, with the CUDA graphs that `config` asks for.

    Args:
        checkpoint: serve_app.models.checkpoint.files.Checkpoint.
        config: engine settings.
        place: device and dtype.
        runtime: for state and scheduler, which vLLM builds.
    """
    _prepare_environment(place.device)
    runtime_key = secrets.token_hex(8)
    RUNTIMES[runtime_key] = runtime
    try:
        engine = _build_engine(checkpoint, config, place, runtime_key)
    except BaseException:
        del RUNTIMES[runtime_key]
        raise
    late = config.late_scheduling and place.device.type == "cuda"
    return TalkerCore(engine, checkpoint.spec.talker, runtime_key, late=late)


def _build_engine(
    checkpoint: Any, config: TalkerConfig, place: DeviceSpec, runtime_key: str
) -> Any:
    with without_collections():
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
        start_times.lap("talker configuration")
        with torch.inference_mode():
            engine = EngineCore(vllm_config, Executor.get_class(vllm_config), log_stats=False)
        start_times.lap("talker graphs")
        return engine


def _prepare_environment(device: torch.device) -> None:
    """Set what vLLM reads of the environment, which it does when it is imported and later on.

    Nothing may import vLLM before, and nobody else sets these.
    """
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    # The uniprocess executor is refused on CPU unless multiprocessing is off; there is one
    # process anyway.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Code 0 is sampled by the talker's own state; compiling FlashInfer's kernels would only delay
    # the start.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Configuring its logging closes every handler that the process has, a replica's log among them.
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    # Else vLLM ends its capture by giving back to the collector what `_build_engine` has frozen;
    # collections during a capture, which this is about, do not happen there.
    os.environ["VLLM_ENABLE_CUDAGRAPH_GC"] = "1"
    if device.type == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def _configuration(
    checkpoint: Any, config: TalkerConfig, place: DeviceSpec, runtime_key: str
) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from serve_app.models.talker.vllm.scheduling.scheduler import FrameScheduler

    cuda = place.device.type == "cuda"
    shape = checkpoint.spec.talker.transformer
    kv_bytes = kv_cache_bytes(config, shape, place.dtype.itemsize)
    settings: dict[str, Any] = {}
    if config.block_size is not None:
        settings["block_size"] = config.block_size
    if cuda:
        # vLLM refuses to start unless this share of the whole card is free; what it takes is
        # fixed by the KV bytes. On a small card nothing is left besides.
        free, total = torch.cuda.mem_get_info(place.device)
        weights = sum(f.stat().st_size for f in checkpoint.path.glob("*.safetensors"))
        if weights + kv_bytes > free:
            raise ValueError(
                f"the talker needs {(weights + kv_bytes) >> 20} MiB of GPU memory for weights and"
                f" KV pool, {free >> 20} of {total >> 20} MiB are free: profile 'auto' takes what"
                " fits, talker.kv_cache_bytes and talker.max_num_seqs may be stated smaller"
            )
        needed = min(weights + kv_bytes + _RESERVE_BYTES, _OF_FREE * free)
        settings["gpu_memory_utilization"] = min(0.95, needed / total)
    graphs = cuda and config.cuda_graphs
    compilation: dict[str, Any] = {"mode": 0, "cudagraph_mode": "FULL" if graphs else "NONE"}
    if graphs and config.graph_sizes is not None:
        compilation["cudagraph_capture_sizes"] = list(config.graph_sizes)
    args = EngineArgs(
        model=str(checkpoint.path),
        skip_tokenizer_init=True,
        dtype=str(place.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        enable_prefix_caching=False,
        scheduling_policy="priority",  # by when a first frame is due: see `TalkerPrompt`
        kv_cache_memory_bytes=kv_bytes,
        enforce_eager=not graphs,
        compilation_config=compilation,  # type: ignore[arg-type]
        additional_config={RUNTIME_KEY: runtime_key, DETERMINISTIC_KEY: config.deterministic},
        scheduler_cls=FrameScheduler,
        disable_log_stats=True,
        **settings,
    )
    vllm_config = args.create_engine_config()
    # vLLM's CPU platform switches asynchronous scheduling off; the talker runs the same way
    # everywhere.
    vllm_config.scheduler_config.async_scheduling = True
    return vllm_config
