"""Every setting, in one strict frozen tree; the only module that reads the environment.

Resources, device and placement are arguments of the app builder (`args:` in configs/*.yaml). What
Serve is told of each deployment (replica bounds, queue limits, drain times) follows from them in
deployments/limits.py; a config file may state it otherwise under `deployments:`.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Seconds of recording that a voice encoder takes at all; which of them are wanted, `ingress.voices`
# says. Shorter ones have no frames to be a voice, longer ones would need memory without bound.
SHORTEST_CLIP_S: Final = 0.1
LONGEST_CLIP_S: Final = 60.0

Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "float32", "bfloat16"]
Profile = Literal["latency", "balanced", "throughput", "auto"]

# What an application of a Serve config file may be built by: everything, a model alone, the ingress
# alone.
BUILDER: Final = "serve_app.app:build"
MODEL_BUILDER: Final = "serve_app.app:build_model"
HTTP_BUILDER: Final = "serve_app.app:build_http"
# Of a process that computes without a GPU, before torch is imported; what vLLM reads is set by
# models/talker/vllm/core.py.
CPU_ENV: Final[Mapping[str, str]] = {
    # More threads than cores that are free make a step many times slower, not faster.
    "OMP_NUM_THREADS": "1",
    # Ray lets a replica without a GPU share see all GPUs.
    "CUDA_VISIBLE_DEVICES": "",
}

# What a profile changes of the defaults below; `balanced` is the defaults. `auto` is not here: the
# builder sets what fits the GPUs (models/memory/presets.py); without a GPU it is the defaults.
PROFILES: Final[Mapping[Profile, Mapping[str, Mapping[str, Any]]]] = {
    # Few streams: the device is never far from free, and little has to be captured at the start.
    "latency": {
        "talker": {"max_num_seqs": 32},
        "code_predictor": {"batch_sizes": (1, 2, 4, 8, 16, 32)},
        "speech_decoder": {
            "max_streams": 64,
            "batch_sizes": (1, 2, 4, 8, 16, 32),
            "patience_s": 0.0,
        },
    },
    "balanced": {},
    # Many streams, all far ahead of their listeners: longer chunks, no waiting for late requests.
    "throughput": {
        "talker": {"max_num_seqs": 256, "late_scheduling": False},
        "speech_decoder": {
            "max_streams": 320,
            "cudnn_benchmark": True,
            "cudnn_from_frames": 64,
            "patience_s": 0.03,
            "chunk_frames": (1, 3, 8, 16),
            "batch_sizes": (1, 2, 4, 8, 16, 32, 64, 128),
        },
    },
}


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment variables that a user may set; "" is the same as not set.

    Attributes:
        model, revision: what is served where the config names none: TTS_MODEL, TTS_REVISION.
        host, port, profile: HOST, PORT, PROFILE, over the config file's.
        ray_address: RAY_ADDRESS, the cluster to join.
        ray_token: whether Ray finds a token for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or in the
            file that a local start of Ray makes.
        past_proxy: no_grpc_proxy, else no_proxy or NO_PROXY: hosts that gRPC asks for no proxy.
        cache: XDG_CACHE_HOME, folder of what can be made again, and of long texts as jobs.
        data: XDG_DATA_HOME, folder of what is kept for good.
        ray_temporary: RAY_TMPDIR, else TMPDIR: folder of Ray's own, with its sockets and logs.
        notify_socket: NOTIFY_SOCKET, where a service manager hears that the server is ready.
        standbys: TTS_STANDBYS, folder of the machine in which standby processes of `fused` wait;
            the launcher sets it.
        loops: TTS_LOOPS, folder in which an ingress says which thread its event loop is, for the
            launcher's keeper; the launcher sets it.
        proxy_refuses: TTS_PROXY_REFUSES, whether every request comes through an HAProxy that the
            launcher has taught to refuse; it sets it.
        checked: TTS_CHECKED, models whose files the launcher has looked at just now, so that the
            builder need not; it sets it.
        visible_gpus: how many GPUs CUDA_VISIBLE_DEVICES names, where "" names none; None: all.
        api_keys, api_keys_file: who may come in, beside `ingress.access`: TTS_API_KEY, the keys
            themselves, and TTS_API_KEYS_FILE.
    """

    model: str | None
    revision: str | None
    host: str | None
    port: int | None
    profile: str | None
    ray_address: str | None
    cache: Path
    data: Path
    standbys: Path | None
    loops: Path | None = None
    proxy_refuses: bool = False
    checked: tuple[str, ...] = ()
    visible_gpus: int | None = None
    api_keys: str | None = field(default=None, repr=False)
    api_keys_file: Path | None = None
    ray_token: bool = False
    ray_temporary: Path = Path("/tmp")
    past_proxy: str | None = None
    notify_socket: str | None = None

    @classmethod
    def read(cls) -> "Environment":
        """As it is now.

        Raises:
            ValueError: PORT is no number, or there is no home for what has no folder of its own.
        """

        def text(name: str) -> str | None:
            return os.environ.get(name) or None

        def folder(name: str, *usual: str) -> Path:
            try:
                return Path(text(name) or Path.home().joinpath(*usual))
            except RuntimeError as error:
                raise ValueError(
                    f"HOME is not set, and user {os.getuid()} has no home: set HOME, or"
                    " XDG_CACHE_HOME and XDG_DATA_HOME"
                ) from error

        port, standbys, loops = text("PORT"), text("TTS_STANDBYS"), text("TTS_LOOPS")
        keys_file = text("TTS_API_KEYS_FILE")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return cls(
            model=text("TTS_MODEL"),
            revision=text("TTS_REVISION"),
            host=text("HOST"),
            port=None if port is None else _number("PORT", port),
            profile=text("PROFILE"),
            ray_address=text("RAY_ADDRESS"),
            cache=folder("XDG_CACHE_HOME", ".cache"),
            data=folder("XDG_DATA_HOME", ".local", "share"),
            standbys=Path(standbys) if standbys else None,
            loops=Path(loops) if loops else None,
            proxy_refuses=text("TTS_PROXY_REFUSES") is not None,
            checked=tuple((text("TTS_CHECKED") or "").split(os.pathsep)),
            visible_gpus=None
            if visible is None
            else len([gpu for gpu in visible.split(",") if gpu]),
            api_keys=text("TTS_API_KEY"),
            api_keys_file=Path(keys_file) if keys_file else None,
            ray_token=any(map(text, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")))
            or os.path.isfile(os.path.expanduser("~/.ray/auth_token")),
            ray_temporary=Path(text("RAY_TMPDIR") or text("TMPDIR") or "/tmp"),
            past_proxy=text("no_grpc_proxy") or text("no_proxy") or text("NO_PROXY"),
            notify_socket=text("NOTIFY_SOCKET"),
        )


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a number, not {text!r}") from error


def kept_at(stated: str | None, users: Path, name: str) -> str:
    """Where something is kept: as stated, or in our part of one of the user's folders."""
    return stated or str(users / "qwen3-tts-serve" / name)


# Larger numbers say nothing that these do not, and break what computes with them: 2^53, beyond
# which a number is not exact everywhere, and for seconds thirty years.
_LARGEST_INT: Final = 1 << 53
_LARGEST_FLOAT: Final = 1e9


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _is_within_reason(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            largest = _LARGEST_INT if isinstance(value, int) else _LARGEST_FLOAT
            if value > largest:
                raise ValueError(f"must be at most {largest:g}")
        return value


Rows = Annotated[int, Field(ge=1, le=4096)]  # of a batch, each a stream
GpuShare = Annotated[
    float,
    Field(ge=0, le=1, description="share of a GPU that Ray reserves per replica; ignored on CPU"),
]
Cores = Annotated[float, Field(ge=0, description="CPU cores that Ray reserves per replica")]
NodeLabels = Annotated[
    Mapping[str, str],
    Field(
        description="labels of the Ray nodes that may have a replica, as Ray's label selectors:"
        " {tts-role: gpu}, {zone: 'in(a, b)'}, {spot: '!yes'}; none: any node"
    ),
]


class StageConfig(Strict):
    """What every stage has; its share of a GPU is its own."""

    device: Device | None = Field(
        default=None,
        description="in `split`, where this stage's device is another one than the application's",
    )
    num_gpus: GpuShare = 0.0
    num_cpus: Cores = 0.5
    node_labels: NodeLabels = {}
    dtype: Dtype = "auto"


class TalkerConfig(StageConfig):
    """The vLLM engine of one talker replica."""

    num_gpus: GpuShare = 0.5
    max_num_seqs: Rows = Field(default=64, description="streams decoded together in one step")
    max_model_len: int = Field(
        default=16384,
        ge=32,
        le=1 << 17,
        description="prompt positions plus frames of one request; the default holds 4,096"
        " characters of any language served and the checkpoint's longest speech (8,192 frames)",
    )
    max_num_batched_tokens: int = Field(
        default=2048,
        ge=16,
        le=1 << 17,
        description="positions computed in one step (chunked prefill)",
    )
    max_queued: int = Field(
        default=256, ge=0, description="requests that may wait beyond the running ones; then 429"
    )
    max_wait_s: float = Field(
        default=0.08,
        ge=0,
        description="longest predicted wait for a place among the streams decoded together; a"
        " request that would wait longer gets 429 and when to come again; while more than a few are"
        " refused, an eighth of it",
    )
    kv_cache_bytes: int | None = Field(
        default=None,
        ge=1,
        description="KV pool; default: room for max_num_seqs requests of 1,024 positions,"
        " at least for one of full length",
    )
    cuda_graphs: bool = Field(
        default=True, description="FULL CUDA graphs for decode steps; false = eager"
    )
    graph_sizes: tuple[Rows, ...] | None = Field(
        default=None,
        min_length=1,
        description="captured CUDA graphs, positions of a step; default: the engine's, which are"
        " every eighth and from 256 on every sixteenth up to twice max_num_seqs, 512 at most",
    )
    late_scheduling: bool = Field(
        default=True,
        description="on a GPU, launch a step only shortly before the one before it ends, so that"
        " a new request waits for less; false = as early as possible",
    )
    deterministic: bool = Field(default=False, description="as for the whole application")
    block_size: int | None = Field(
        default=None,
        ge=1,
        le=1 << 17,
        description="KV block length in positions; default: the engine's",
    )


class CodePredictorConfig(StageConfig):
    """The code predictor: its own deployment in `split`, in the talker's process in `fused`."""

    num_gpus: GpuShare = 0.2
    batch_sizes: tuple[Rows, ...] = Field(
        default=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        min_length=1,
        description="captured CUDA graphs; the largest is at least talker.max_num_seqs",
    )
    kernels: Literal["auto", "eager"] = Field(
        default="auto",
        description="auto = fused kernels on CUDA in bfloat16, small models in float32 compiled for"
        " the CPU; eager = PyTorch only",
    )
    deterministic: bool = Field(default=False, description="as for the whole application")
    channel: Literal["auto", "cuda_ipc", "socket"] = Field(
        default="auto",
        description="how a talker reaches a predictor: tensors over CUDA IPC on one GPU, or"
        " through the socket; auto = cuda_ipc on the same GPU, else socket",
    )


class SpeechDecoderConfig(StageConfig):
    """The streaming speech decoder."""

    num_gpus: GpuShare = 0.3
    max_streams: Rows = Field(default=128, description="slots of the state arena")
    chunk_frames: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 3, 8, 12),
        min_length=1,
        description="frames per chunk: first, second, ...; the last value repeats",
    )
    batch_sizes: tuple[Rows, ...] = Field(
        default=(1, 2, 4, 8, 16, 32, 64),
        min_length=1,
        description="captured CUDA graphs, streams",
    )
    first_batch_sizes: tuple[Rows, ...] = Field(
        default=(1, 2, 4, 8),
        min_length=1,
        description="in `fused` on a GPU, captured CUDA graphs of first frames, streams; more that"
        " begin in one step take the usual way",
    )
    patience_s: float = Field(
        default=0.02,
        ge=0,
        description="on a GPU, how long a chunk may wait for others to be decoded with while its"
        " listener has enough to play",
    )
    cudnn_benchmark: bool = Field(
        default=False,
        description="let cuDNN try its algorithms at the start: more audio per second, and a start"
        " that takes up to 15 s longer, by how many steps it is for",
    )
    cudnn_algorithms: int = Field(
        default=10,
        ge=1,
        description="with cudnn_benchmark, how many are tried for each convolution, those first"
        " that cuDNN expects to be fast",
    )
    cudnn_from_frames: int = Field(
        default=1,
        ge=1,
        description="with cudnn_benchmark, only for steps of at least so many frames, those of all"
        " streams together; smaller ones take what cuDNN expects to be fast",
    )


class VoiceEncoderConfig(Strict):
    """What makes voices of recordings, where a checkpoint clones voices: a deployment of its own in
    both placements, without a replica while nobody needs one.
    """

    device: Device | None = Field(
        default=None, description="where it is another one than the application's"
    )
    num_gpus: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a GPU that Ray reserves per replica; with 0, a replica uses the first"
        " GPU of its node beside what runs there, or the CPU where there is none",
    )
    num_cpus: float = Field(
        default=0.0,
        ge=0,
        description="CPU cores that Ray reserves per replica; none are kept for what is rare",
    )
    node_labels: NodeLabels = {}
    num_threads: int = Field(default=2, ge=1, le=1024, description="where it runs on a CPU")
    max_queued: int = Field(
        default=16, ge=0, description="recordings that wait at an ingress; then 429"
    )
    max_replicas: int = Field(default=2, ge=1)


class BatchConfig(Strict):
    """`POST /v1/audio/speech/batch`."""

    max_items: int = Field(default=64, ge=1, description="texts of one request")
    max_input_chars: int = Field(
        default=131072, ge=1, description="of all its texts; each has the limit of a request, too"
    )
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="longest time of an item, most of it spent waiting for room; then it fails",
    )


class LiveConfig(Strict):
    """WebSockets: `/v1/audio/speech/stream` and `/v1/realtime`."""

    config_timeout_s: float = Field(
        default=10.0, gt=0, description="how long a client may take for its first message"
    )
    idle_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="how long a connection may rest, on which nothing is said or spoken; each holds"
        " one of the requests that an ingress takes",
    )


class JobsConfig(Strict):
    """`/v1/audio/speech/long`: texts of hours, made in the background into files."""

    directory: str | None = Field(
        default=None,
        description="where jobs and their audio are, the same for all ingresses (a shared file"
        " system where they are on several nodes); default: qwen3-tts-serve/jobs in the cache",
    )
    max_input_chars: int = Field(default=500_000, ge=1, description="text of a job")
    max_unit_frames: int = Field(
        default=1000,
        ge=1,
        description="codec frames of a unit, by estimate: what is made again after a loss",
    )
    max_jobs: int = Field(
        default=1000, ge=0, description="jobs that there may be, also those that are over"
    )
    max_bytes: int = Field(
        default=20 * 10**9, ge=1, description="audio on disk; then no job is taken any more"
    )
    keep_s: float = Field(
        default=7 * 86400.0, gt=0, description="how long a job is kept after its last change"
    )
    keep_units_s: float = Field(
        default=6 * 3600.0,
        gt=0,
        description="how long the parts are kept beside the finished file, for who follows it",
    )
    running: int = Field(default=2, ge=1, description="jobs that one ingress works on at a time")
    lease_s: float = Field(
        default=15.0,
        gt=0,
        description="after how long another ingress takes over the job of one that is dead",
    )
    poll_s: float = Field(
        default=2.0, gt=0, description="how often an ingress looks for jobs that nobody works on"
    )

    @property
    def folder(self) -> Path:
        return Path(kept_at(self.directory, Environment.read().cache, "jobs")).expanduser()


class VoicesConfig(Strict):
    """The voice library, and voices that a request brings along."""

    path: str | None = Field(
        default=None,
        description="where it is kept, the same for all ingresses: a folder (a shared file system"
        " where they are on several nodes), or a URL that fsspec reads, such as s3://bucket/voices;"
        " default: qwen3-tts-serve/voices in the user's data folder",
    )
    storage_options: Mapping[str, Any] = Field(
        default={}, description="what fsspec's file system takes: endpoint_url, key, secret, ..."
    )
    uploads: bool = Field(
        default=True, description="false: voices can be used, but not made, changed or deleted"
    )
    max_voices: int = Field(
        default=1000, ge=0, description="in the library; as many consents, and as many aliases"
    )
    max_voices_of_a_key: int = Field(
        default=100,
        ge=0,
        description="of them, one API key's; without a key only max_voices counts",
    )
    max_upload_bytes: int = Field(default=10 << 20, ge=1, description="file of a recording")
    min_s: float = Field(
        default=1.0, ge=SHORTEST_CLIP_S, description="shortest recording of a voice"
    )
    max_s: float = Field(default=30.0, gt=0, le=LONGEST_CLIP_S, description="longest one")
    require_consent: bool = Field(
        default=False,
        description="no voice is made of a recording or a vector without a recorded consent, and"
        " none is used whose consent has been deleted",
    )
    share: bool = Field(
        default=False, description="voices are for all keys, not only for the one that made them"
    )
    admins: tuple[str, ...] = Field(
        default=(),
        description="names of keys that may change every voice, and whose aliases and default hold"
        " for everybody",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="from which ref_audio may be fetched by https; none: from nowhere"
    )

    @model_validator(mode="after")
    def _takes_some_recording(self) -> "VoicesConfig":
        if self.min_s > self.max_s:
            raise ValueError(f"min_s {self.min_s:g} is more than max_s {self.max_s:g}")
        return self

    @property
    def place(self) -> str:
        return kept_at(self.path, Environment.read().data, "voices")


class AccessConfig(Strict):
    """Who may come in, how often, and with how much. Without any key, everybody may."""

    keys_file: str | None = Field(
        default=None,
        description="API keys, as `python -m serve_app keys` writes them; read again when it"
        " changes; TTS_API_KEYS_FILE and TTS_API_KEY add to it",
    )
    public_lists: bool = Field(
        default=True, description="models and voices are listed without a key"
    )
    requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of a key that states none; default: as many as come",
    )
    concurrent: int | None = Field(
        default=None, ge=1, description="requests at once, of a key that states none"
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="web pages of other servers that may use this one, such as"
        " https://example.com; * = all",
    )
    max_body_bytes: int = Field(
        default=16 << 20, ge=1, description="of any request; most paths allow less"
    )
    max_frame_bytes: int = Field(
        default=8 << 20, ge=1, description="of a message on a WebSocket; most allow less"
    )
    body_timeout_s: float = Field(
        default=60.0, gt=0, description="longest time that the body of a request may take to come"
    )
    pages: bool = Field(
        default=True, description="the playground, /docs, /redoc and /openapi.json are served"
    )


class ObserveConfig(Strict):
    """What the ingress tells of requests."""

    log_format: Literal["text", "json"] = Field(
        default="text", description="of the line that the log has for each request"
    )
    metrics: Literal["open", "key", "off"] = Field(
        default="open", description="GET /metrics: for everybody, for keys, for nobody"
    )
    tracing: bool = Field(
        default=False,
        description="OpenTelemetry spans, to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the"
        " extra `otel`",
    )


class IngressConfig(Strict):
    num_cpus: Cores = 0.5
    node_labels: NodeLabels = {}
    max_input_chars: int = Field(
        default=32768, ge=1, description="text of a request; long text is spoken in units"
    )
    accept_any_model: bool = Field(
        default=False,
        description="a request for a model that is not served is for the default one; false = 404",
    )
    accept_any_voice: bool = Field(
        default=False,
        description="a voice that does not exist stands for the default one; false = 400",
    )
    stream_true: Literal["bytes", "sse"] = Field(
        default="bytes",
        description="what `stream: true` asks for where no `stream_format` is stated: the audio as"
        " it is made, or, as vllm-omni reads it, events",
    )
    first_audio_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="longest wait for the first audio of an attempt; then another replica is tried",
    )
    chunk_timeout_s: float = Field(
        default=20.0, gt=0, description="longest silence after it; then another replica is tried"
    )
    resume_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="longest silence of a stream over all attempts; then it is given up",
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        description="how long a server that is told to end lets open streams go on; the launcher"
        " applies it",
    )
    read_ahead_s: float = Field(
        default=60.0,
        gt=0,
        description="audio that may wait for a slow reader, whose stages are free meanwhile",
    )
    reader_timeout_s: float = Field(
        default=60.0, gt=0, description="how long a client may read nothing; then it is cut off"
    )
    background_streams: int = Field(
        default=4,
        ge=1,
        description="streams of batches and long texts that one ingress has at a time, of each"
        " model; they wait for free places and give way to listeners",
    )
    batch: BatchConfig = BatchConfig()
    live: LiveConfig = LiveConfig()
    jobs: JobsConfig = JobsConfig()
    voices: VoicesConfig = VoicesConfig()
    access: AccessConfig = AccessConfig()
    observe: ObserveConfig = ObserveConfig()


class AdmissionSettings(Strict):
    """Who may wait, where it is another than `talker` says."""

    max_queued: int | None = Field(default=None, ge=0, description="as of `talker`")
    max_wait_s: float | None = Field(default=None, ge=0, description="as of `talker`")


class LiveSettings(Strict):
    """`user_config` of the ingress: what Serve applies while it runs, without a restart."""

    default_model: str | None = Field(
        default=None,
        description="what answers a request that needs no other one: a served name, hub id or"
        " folder; default: the model of the ingress's own application, else CustomVoice before"
        " VoiceDesign before Base, then by name",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="of this package's messages"
    )
    admission: AdmissionSettings = Field(
        default=AdmissionSettings(), description="for all models but those below"
    )
    models: Mapping[str, AdmissionSettings] = Field(
        default={}, description="by served name, instead of `admission`"
    )


class HttpConfig(Strict):
    """`args:` of an application that has an ingress only; the models are applications beside it."""

    ingress: IngressConfig = IngressConfig()
    streams: int = Field(
        default=64, ge=1, description="streams of all models that there are ingresses for at first"
    )


# Of the ingress's settings, what the stages of a model go by as well.
SHARED_WITH_STAGES: Final = ("first_audio_timeout_s", "chunk_timeout_s", "resume_timeout_s")


class AppConfig(Strict):
    """`args:` of configs/*.yaml.

    `profile` changes defaults; what is stated explicitly stays as stated.
    """

    profile: Profile = Field(
        default="balanced",
        description="latency: up to 32 streams per replica; balanced: 64; throughput: 256; auto: as"
        " many as the memory of the GPUs holds, up to 256, in the manner of balanced",
    )
    gpu_memory_gib: float | None = Field(
        default=None,
        gt=0,
        description="memory of a GPU, which decides what fits; default: of the smallest there is",
    )
    model: str | None = Field(
        default=None,
        description="checkpoint: local folder or hub id; default TTS_MODEL, else the"
        " embedded English voice",
    )
    revision: str | None = Field(
        default=None, description="hub revision; a hub id needs one unless it is a known release"
    )
    served_model_name: str | None = None
    placement: Literal["split", "fused"] = "split"
    same_gpu: Literal["preferred", "required"] = Field(
        default="preferred",
        description="in `split`, one of each stage on a GPU: required"
        " = the application is not built where Serve cannot be held to that",
    )
    device: Device = "auto"
    deterministic: bool = Field(
        default=False,
        description="the same seeded request gives the same codes alone, among others and resumed,"
        " on a GPU as well, where it costs speed; on a CPU in float32 that is always so",
    )
    talker: TalkerConfig = TalkerConfig()
    code_predictor: CodePredictorConfig = CodePredictorConfig()
    speech_decoder: SpeechDecoderConfig = SpeechDecoderConfig()
    voice_encoder: VoiceEncoderConfig = VoiceEncoderConfig()
    ingress: IngressConfig = IngressConfig()

    @model_validator(mode="before")
    @classmethod
    def _over_profile(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        profile = data.get("profile", "balanced")
        # An unknown profile is reported by the validation that follows.
        overlay = dict(next((own for name, own in PROFILES.items() if name == profile), {}))
        if data.get("deterministic"):
            for stage in ("talker", "code_predictor"):
                overlay[stage] = {**overlay.get(stage, {}), "deterministic": True}
        merged = dict(data)
        for stage, settings in overlay.items():
            stated = data.get(stage, {})
            if isinstance(stated, BaseModel):
                stated = stated.model_dump(exclude_unset=True)
            if isinstance(stated, Mapping):
                merged[stage] = {**settings, **stated}
        return merged

    @model_validator(mode="after")
    def _one_place_in_fused(self) -> "AppConfig":
        stages = (self.talker, self.code_predictor, self.speech_decoder)
        if self.placement == "fused" and any(stage.device is not None for stage in stages):
            raise ValueError("in placement 'fused' all stages have the application's device")
        if self.placement == "fused" and any(
            stage.node_labels not in ({}, self.talker.node_labels) for stage in stages
        ):
            raise ValueError("in placement 'fused' all stages are where talker.node_labels says")
        share = round(sum(stage.num_gpus for stage in stages), 6)
        if self.placement == "fused" and share > 1:
            raise ValueError(f"in placement 'fused' num_gpus add up to {share:g}, of one GPU")
        return self

    @model_validator(mode="after")
    def _frames_for_all_streams(self) -> "AppConfig":
        streams, most = self.talker.max_num_seqs, max(self.code_predictor.batch_sizes)
        if most < streams:
            raise ValueError(
                f"code_predictor.batch_sizes: the largest, {most}, is less than the {streams} of"
                " talker.max_num_seqs"
            )
        return self

    def misplaced(self) -> tuple[str, ...]:
        """Settings of the ingress that mean nothing in an application that has none."""
        return tuple(sorted(self.ingress.model_fields_set - set(SHARED_WITH_STAGES)))

    def resolved(self) -> "AppConfig":
        """A copy with the environment applied (TTS_MODEL, TTS_REVISION)."""
        environment = Environment.read()
        return self.model_copy(
            update={
                "model": self.model or environment.model,
                "revision": self.revision or environment.revision,
            }
        )

    def shown(self) -> str:
        """The whole tree in JSON, for the log: without what a storage is opened with, where secrets
        are.
        """
        return self.model_dump_json(exclude={"ingress": {"voices": {"storage_options"}}})

    @property
    def digest(self) -> str:
        """Short hash of the whole tree, for the log and benchmark reports."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
