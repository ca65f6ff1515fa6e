"""Values that cross a stage boundary: frozen, picklable, numpy and plain Python only.

    SpeechRequest -[prompt]-> Prompt -[talker + code predictor]-> CodecFrames* -[speech decoder]->
    PcmChunk* -> bytes

A star marks a stream. Shapes use T frames, Q code groups, P prompt positions, N samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

FinishReason = Literal["stop", "length"]
# What can refuse or cut a stream.
Stage = Literal["talker", "speech_decoder"]
# Either way in a cloned voice's vector. Encoders make some tens; what is far beyond is infinite in
# bfloat16, and then no logit of its stream is a number.
LARGEST_SPEAKER_VALUE: Final = 1e6
# In the timings of first audio: what was waited for a replica that takes the call, with the way
# there and back, and in the talker until its prefill.
REPLICA_WAIT: Final = "replica"
TALKER_QUEUE: Final = "talker_queue"
HealthState = Literal["works", "unavailable", "failed"]
TaskType = Literal["custom_voice", "voice_design", "base"]
# What a voice can be made of: one of the checkpoint's speakers, a description, a recording.
VoiceSource = Literal["named", "description", "sample"]
VOICE_SOURCES: Final[Mapping[TaskType, frozenset[VoiceSource]]] = {
    "custom_voice": frozenset({"named"}),
    "voice_design": frozenset({"description"}),
    "base": frozenset({"sample"}),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one code is drawn; `temperature` 0 means greedy, `top_k` 0 and `top_p` 1 switch that
    filter off.
    """

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class SamplingOverrides:
    """The sampling parameters a request states; None means the checkpoint's generation_config
    decides.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class NamedVoice:
    """One of the checkpoint's speakers; upper and lower case are the same to it."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class ClonedVoice:
    """A voice made of a recording, whole: any replica can speak and resume with it.

    speaker_vector: float32 [H], H = hidden size of the talker it was made for.
    reference_codes: int64 [T, Q] of the recording (in-context clone), or None (x-vector only).
    reference_text: what is said in the recording; set exactly where reference_codes is.
    name: for logs and headers only.
    """

    speaker_vector: np.ndarray
    reference_codes: np.ndarray | None = None
    reference_text: str | None = None
    name: str = "clone"

    def __str__(self) -> str:
        return self.name


# How a voice travels: everything that the talker needs of it, so that no stage keeps voices and any
# replica can go on with a stream.
Voice = NamedVoice | ClonedVoice


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """What a voice encoder makes of a recording.

    speaker_vector: float32 [H].
    codes: int64 [T, Q], one row per 80 ms begun.
    """

    speaker_vector: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """One synthesis, valid by construction (the HTTP layer has checked it); knows nothing of HTTP.

    `voice` is None where the checkpoint makes one up, from `instructions` or freely.
    `language` is "auto" or a key of the checkpoint's codec_language_id. `streaming_text` chooses
    the prompt layout that feeds one text token per frame instead of the whole text in the prefill.
    `seed` is always set: the ingress draws one where the client gave none, so that any replica can
    repeat the request exactly. `background`: nobody listens while it is made, so that it takes only
    places that listeners will not miss. `priority`: what the operator gave the
    caller's key; decides at the ingress who comes in when there is not room for all.
    `longest_wait_s`: a stage refuses it rather than have it wait for longer for a
    place; None: as the stage has it. `ahead_s`: of a piece that goes on with what is being heard,
    the audio that its listener still has when it is asked for; None: nothing comes before it.
    """

    request_id: str
    model: str
    text: str
    voice: Voice | None
    language: str
    seed: int
    instructions: str | None = None
    streaming_text: bool = False
    talker: SamplingOverrides = field(default_factory=SamplingOverrides)
    subtalker: SamplingOverrides = field(default_factory=SamplingOverrides)
    min_new_tokens: int | None = None
    max_new_tokens: int | None = None
    background: bool = False
    priority: int = 0
    longest_wait_s: float | None = None
    ahead_s: float | None = None

    @property
    def context(self) -> np.ndarray | None:
        """int64 [T, Q] that the speech goes on from and that nobody wants to hear: the recording of
        an in-context clone.
        """
        return self.voice.reference_codes if isinstance(self.voice, ClonedVoice) else None

    def is_heard(self, done: np.ndarray | None) -> bool:
        """Whether its listener hears it already (`done`: int64 [T, Q]), or what comes before it."""
        return self.ahead_s is not None or (done is not None and len(done) > 0)

    def ends_at(self, num_frames: int) -> bool:
        """Whether speech of so many frames is as long as the client let it be."""
        return self.max_new_tokens is not None and num_frames >= self.max_new_tokens


@dataclass(frozen=True, slots=True)
class InputTokens:
    """What a talker reads of one request, and is counted as its usage.

    text: of the text and the instructions, without what a prompt puts around them.
    audio: codec frames of the recording that an in-context clone goes on from.
    """

    text: int = 0
    audio: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """Everything the talker needs for one request; no file is read after it exists.

    rows: int32 [P, 1 + Q]. Column 0 is a text id or -1, column 1 + g a code of group g or -1. The
        embedding of a row is the sum of what is not -1: text_table[text id] + sum over g of
        codec_table_g[code].
    trailing_text: int32 [n]. The text id added to generated frame t; frames t >= n get
        `pad_text_id`.
    speaker_vector: float32 [H] added to position `speaker_position` as if it were a code's row, or
        None (voice clones only).
    """

    request_id: str
    rows: np.ndarray
    trailing_text: np.ndarray
    pad_text_id: int
    talker: Sampling
    subtalker: Sampling
    seed: int
    min_new_tokens: int
    max_new_tokens: int
    speaker_vector: np.ndarray | None = None
    speaker_position: int = -1
    tokens: InputTokens = InputTokens()


@dataclass(frozen=True, slots=True)
class CodecFrames:
    """Consecutive codec frames of one stream: codes int64 [T, Q], T >= 1, never an EOS row.

    `finish_reason` is set on the last item of a stream only. An empty tail (the EOS came after the
    last frame had been sent) is an item with T == 0 and a finish reason.
    `samples` (int16 [T * samples_per_frame]) is their audio where the process that made them has
    decoded them as well; then they are not to be decoded again.
    `queued_s`, `elapsed_s`, on the first item of a stream only: how long it waited for its prefill
    to be launched, and from the talker's call to this item.
    `tokens`, on the item that a stream begins with, and on none where it goes on: what was read.
    """

    codes: np.ndarray
    first_frame: int
    finish_reason: FinishReason | None = None
    samples: np.ndarray | None = None
    queued_s: float | None = None
    elapsed_s: float | None = None
    tokens: InputTokens | None = None


@dataclass(frozen=True, slots=True)
class PcmChunk:
    """Consecutive samples of one stream and the codes they were made from.

    samples: int16 [N], N = T * samples_per_frame (0 in a tail that only carries the finish reason).
    codes: int64 [T, Q].
    timings: on the first chunk of a stream only, what parts of the way took until it came by, in
        seconds: each by a clock of its own machine.
    tokens: as `CodecFrames.tokens`.
    """

    samples: np.ndarray
    first_sample: int
    codes: np.ndarray
    finish_reason: FinishReason | None = None
    timings: tuple[tuple[str, float], ...] = ()
    tokens: InputTokens | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a stage can work. Durations until now, which mean the same in any process.

    state: what a caller would get: an answer, StageUnavailable, or StageFailed.
    reason: why it cannot work.
    busy_s: how long it has had something to do without getting on; 0 where it rests.
    progress_s: how long ago it last got on; None: not yet.
    """

    state: HealthState = "works"
    reason: str = ""
    busy_s: float = 0.0
    progress_s: float | None = None


@dataclass(frozen=True, slots=True)
class TextNeeds:
    """How a checkpoint wants its text; the releases read what people write, to the end.

    max_unit_frames: the most frames of one synthesis, by estimate from the text; None: what one
        generation can hold.
    max_frames_per_token: of the text, beyond which a synthesis has gone astray; None: the talker's
        own bound.
    plain_words: English is put in words without figures, signs and Markdown, unless a request says
        otherwise.
    letters: all that it was taught, in lower case and without accents; "": those of any script.
    """

    max_unit_frames: int | None = None
    max_frames_per_token: int | None = None
    plain_words: bool = False
    letters: str = ""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the HTTP layer may know of a served checkpoint, without torch or the weights.

    task: for display and `task_type` only; what can be asked for are the capabilities below.
    voice_aliases: other names of its voices that the checkpoint brings along.
    control_strings: what the tokenizer would not read as text.
    speaker_vector_size: width of a cloned voice's vector; None: the checkpoint clones no voice.
    """

    name: str
    task: TaskType
    size: str
    languages: tuple[str, ...]
    voices: tuple[str, ...]
    voice_sources: frozenset[VoiceSource]
    supports_instructions: bool
    sample_rate_hz: int
    samples_per_frame: int
    max_new_tokens: int
    path: str
    embedded: bool = False
    voice_languages: Mapping[str, str] = field(default_factory=dict)
    voice_aliases: Mapping[str, str] = field(default_factory=dict)
    control_strings: tuple[str, ...] = ()
    speaker_vector_size: int | None = None
    text_needs: TextNeeds = field(default_factory=TextNeeds)

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.samples_per_frame
