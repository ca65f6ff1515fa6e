"""SpeechRequest -> Prompt: the rows that the talker reads, and the text it is fed later.

A pure function of the request and the checkpoint's facts. The layout is the reference's, row by row
(tests/parity/test_prompts.py): instructions, role, prefix, body.
"""

import asyncio
import dataclasses
from functools import partial
from typing import Final

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.types import (
    ClonedVoice,
    InputTokens,
    NamedVoice,
    Prompt,
    Sampling,
    SamplingOverrides,
    SpeechRequest,
)

# Runaway guard: some sampled requests never reach the EOS. 25 frames are two seconds for each
# text token, several times slower than slow speech (about 4 frames a token in English); 60 frames
# leave room for silence around a word.
_CEILING_FRAMES: Final = 60
_CEILING_FRAMES_PER_TOKEN: Final = 25

_ABSENT: Final = -1
# Around instructions: <|im_start|> user newline, <|im_end|> newline.
_INSTRUCTION_FRAME: Final = 5
_OVERRIDES: Final = tuple(field.name for field in dataclasses.fields(SamplingOverrides))
# Tokenizing takes 3 to 7 us a character, and everybody's chunks pass the loop meanwhile; a thread
# takes 0.1 ms to be asked.
_LONG_TEXT: Final = 500


class PromptBuilder:
    """`build_prompt` for the requests of one talker, wherever they pass.

    Args:
        spec: the checkpoint's facts.
        tokenizer: the checkpoint's text tokenizer.
        max_model_len: positions the talker's engine has for prompt and frames together.
    """

    def __init__(self, spec: ModelSpec, tokenizer: TextTokenizer, max_model_len: int) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len

    async def build(self, request: SpeechRequest) -> Prompt:
        """Lay out `request`, long texts beside the event loop; raises as `build_prompt` does."""
        build = partial(build_prompt, request, self._spec, self._tokenizer, self._max_model_len)
        voice = request.voice
        said_before = voice.reference_text if isinstance(voice, ClonedVoice) else None
        texts = (request.text, request.instructions, said_before)
        if sum(len(text or "") for text in texts) <= _LONG_TEXT:
            return build()
        return await asyncio.to_thread(build)


def build_prompt(
    request: SpeechRequest, spec: ModelSpec, tokenizer: TextTokenizer, max_model_len: int
) -> Prompt:
    """Lay out one request for the talker of `spec`.

    Args:
        request: `voice` None means no speaker row; names of voices and languages are
            case-insensitive. A cloned voice adds its vector and, in context, rows of its
            recording's text and codes.
        spec: the checkpoint's facts.
        tokenizer: the checkpoint's text tokenizer.
        max_model_len: positions the talker's engine has for prompt and frames together.

    Raises:
        InvalidRequest: unknown voice or language, empty text, control strings, a text that does
            not fit, or a voice of another kind than the checkpoint speaks with.

    Source: generate() and the generate_* wrappers of QwenLM/Qwen3-TTS.
    """
    clone = _clone(request, spec)
    speaker = None if clone is not None else _speaker(request, spec)
    language_id = _language_id(request, speaker, spec)
    role, text = _target_ids(request.text, spec, tokenizer)
    instructions = _instruction_ids(request.instructions, spec, tokenizer)
    codec = _codec_ids(language_id, spec)
    if clone is not None:
        codec.append(_ABSENT)  # the vector's place
    elif speaker is not None:
        codec.append(spec.talker.speaker_ids[speaker])

    before = [(text_id, _ABSENT) for text_id in (*instructions, *role)]
    before += [(spec.text.tts_pad_id, code) for code in codec]
    speaker_position = len(before) - 1
    before.append((spec.text.tts_bos_id, spec.talker.codec_pad_id))
    if clone is not None and clone.reference_codes is not None:
        said = [*_reference_ids(clone, spec, tokenizer), *text, spec.text.tts_eos_id]
        body, trailing = _in_context(said, clone.reference_codes, request.streaming_text, spec)
    else:
        body, trailing = _plain(text, request.streaming_text, spec)
    rows = np.concatenate([_with_empty_groups(before, spec.talker.num_code_groups), body])

    room = min(max_model_len, spec.talker.max_position_embeddings) - len(rows)
    min_new_tokens, max_new_tokens = _length_limits(request, spec, len(text), room)
    return Prompt(
        request_id=request.request_id,
        rows=rows,
        # Text beyond the last frame is never read.
        trailing_text=np.array(trailing[:max_new_tokens], dtype=np.int32),
        pad_text_id=spec.text.tts_pad_id,
        talker=_merged(spec.generation.talker, request.talker),
        subtalker=_merged(spec.generation.subtalker, request.subtalker),
        seed=request.seed,
        min_new_tokens=min_new_tokens,
        max_new_tokens=max_new_tokens,
        speaker_vector=None if clone is None else clone.speaker_vector,
        speaker_position=_ABSENT if clone is None else speaker_position,
        tokens=InputTokens(
            len(text) + max(0, len(instructions) - _INSTRUCTION_FRAME),
            0 if request.context is None else len(request.context),
        ),
    )


def _plain(text: list[int], streaming: bool, spec: ModelSpec) -> tuple[np.ndarray, list[int]]:
    """The body's rows, and the text that follows them."""
    groups, bos = spec.talker.num_code_groups, spec.talker.codec_bos_id
    if streaming:
        return _with_empty_groups([(text[0], bos)], groups), [*text[1:], spec.text.tts_eos_id]
    rows = [(text_id, spec.talker.codec_pad_id) for text_id in (*text, spec.text.tts_eos_id)]
    return _with_empty_groups([*rows, (spec.text.tts_pad_id, bos)], groups), []


def _in_context(
    said: list[int], codes: np.ndarray, streaming: bool, spec: ModelSpec
) -> tuple[np.ndarray, list[int]]:
    """The body's rows after a recording, and the text that follows them.

    Args:
        said: ids of the recording's text, the request's, and the end.
        codes: int [T, Q] of the recording.
        streaming: text beside the codes; else in front of them.
        spec: the checkpoint's facts.
    """
    groups = spec.talker.num_code_groups
    frames = _with_empty_groups([(spec.text.tts_pad_id, spec.talker.codec_bos_id)], groups)
    frames = np.concatenate([frames, np.full((len(codes), 1 + groups), frames[0, 0], np.int32)])
    frames[1:, 1:] = codes
    if not streaming:
        rows = _with_empty_groups([(text_id, spec.talker.codec_pad_id) for text_id in said], groups)
        return np.concatenate([rows, frames]), []
    beside = said[: len(frames)]
    frames[: len(beside), 0] = beside
    return frames, said[len(frames) :]


def _clone(request: SpeechRequest, spec: ModelSpec) -> ClonedVoice | None:
    """The request's cloned voice, which fits the checkpoint; None: it has no such voice."""
    voice = request.voice
    clones = spec.voice_encoder is not None
    if not isinstance(voice, ClonedVoice):
        if clones:
            message = f"model {request.model!r} speaks with voices made of a recording only"
            raise InvalidRequest(message, param="voice", code="voice_not_found")
        return None
    hidden, groups = spec.talker.transformer.hidden_size, spec.talker.num_code_groups
    codes, text = voice.reference_codes, voice.reference_text
    if not clones:
        message = f"model {request.model!r} clones no voices: use a Base checkpoint"
    elif voice.speaker_vector.shape != (hidden,):
        message = (
            f"voice {voice.name!r} was made for another checkpoint: its vector has"
            f" {voice.speaker_vector.size} numbers, and model {request.model!r} wants {hidden}"
        )
    elif (codes is None) != (text is None):
        message = f"voice {voice.name!r} needs both codes and text of its recording, or neither"
    elif codes is not None and not _are_frames(codes, groups, spec.speech_decoder.codebook_size):
        message = f"codes of voice {voice.name!r} are no frames of {groups} codes each"
    else:
        return voice
    raise InvalidRequest(message, param="voice")


def _are_frames(codes: np.ndarray, groups: int, entries: int) -> bool:
    right = np.issubdtype(codes.dtype, np.integer) and codes.ndim == 2 and codes.shape[1] == groups
    return right and len(codes) > 0 and codes.min() >= 0 and codes.max() < entries


def _speaker(request: SpeechRequest, spec: ModelSpec) -> str | None:
    if request.voice is None:
        return None
    assert isinstance(request.voice, NamedVoice)
    speaker = request.voice.name.lower()
    if speaker in spec.talker.speaker_ids:
        return speaker
    if spec.task == "voice_design":
        message = (
            f"model {request.model!r} has no preset voices: describe the voice in 'instructions'"
        )
    else:
        valid = ", ".join(spec.talker.speaker_ids)
        message = f"unknown voice {request.voice.name!r}; valid: {valid}"
    raise InvalidRequest(message, param="voice", code="voice_not_found")


def _language_id(request: SpeechRequest, speaker: str | None, spec: ModelSpec) -> int | None:
    """Return the id of the language row, or None for the form without one."""
    language = request.language.lower()
    if language not in spec.languages:
        message = f"unknown language {request.language!r}; valid: {', '.join(spec.languages)}"
        raise InvalidRequest(message, param="language")
    dialect = spec.talker.speaker_dialects.get(speaker or "")
    if dialect is not None and language in ("auto", "chinese"):
        return spec.talker.language_ids[dialect]
    return None if language == "auto" else spec.talker.language_ids[language]


def _codec_ids(language_id: int | None, spec: ModelSpec) -> list[int]:
    """Return the prefix's group-0 ids, as far as the speaker."""
    talker = spec.talker
    if language_id is None:
        return [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
    return [
        talker.codec_think_id,
        talker.codec_think_bos_id,
        language_id,
        talker.codec_think_eos_id,
    ]


def _target_ids(
    text: str, spec: ModelSpec, tokenizer: TextTokenizer
) -> tuple[list[int], list[int]]:
    """Return the ids of the role ("<|im_start|>assistant\\n") and of the text."""
    text = _checked(text, "input", tokenizer)
    if not text:
        raise InvalidRequest("the text is empty", param="input")
    # Tokenized as a whole and then cut, as the reference does: merges across the seams decide the
    # ids.
    ids = tokenizer.encode(f"<|im_start|>assistant\n{text}<|im_end|>\n<|im_start|>assistant\n")
    role, spoken, rest = ids[:3], ids[3:-5], ids[-5:]
    frame = (spec.text.im_start_id, spec.text.assistant_id)
    if tuple(role[:2]) != frame or rest[0] != spec.text.im_end_id or not spoken:
        raise InvalidRequest("the text cannot be tokenized on its own", param="input")
    return role, spoken


def _reference_ids(clone: ClonedVoice, spec: ModelSpec, tokenizer: TextTokenizer) -> list[int]:
    """Return the ids of what a clone's recording says."""
    text = _checked(clone.reference_text or "", "ref_text", tokenizer)
    if not text:
        raise InvalidRequest("the text of the recording is empty", param="ref_text")
    ids = tokenizer.encode(f"<|im_start|>assistant\n{text}<|im_end|>\n")
    if ids[-2] != spec.text.im_end_id or len(ids) < 6:
        reason = "the text of the recording cannot be tokenized on its own"
        raise InvalidRequest(reason, param="ref_text")
    return ids[3:-2]


def _instruction_ids(
    instructions: str | None, spec: ModelSpec, tokenizer: TextTokenizer
) -> list[int]:
    if instructions is None or not spec.supports_instructions:
        return []
    instructions = _checked(instructions, "instructions", tokenizer)
    if not instructions:
        return []
    return tokenizer.encode(f"<|im_start|>user\n{instructions}<|im_end|>\n")


def _checked(text: str, param: str, tokenizer: TextTokenizer) -> str:
    for control in tokenizer.control_strings:
        if control in text:
            raise InvalidRequest(f"{param!r} contains the control string {control!r}", param=param)
    return text.strip()


def _length_limits(
    request: SpeechRequest, spec: ModelSpec, text_tokens: int, room: int
) -> tuple[int, int]:
    """Return the least and the most frames, given `room` positions after the prompt."""
    min_new_tokens = max(request.min_new_tokens or 0, spec.generation.min_new_tokens)
    if request.max_new_tokens is not None:
        wanted = max(request.max_new_tokens, 1)
        needed = min(wanted, min_new_tokens)
    else:
        per_token = spec.text_needs.max_frames_per_token or _CEILING_FRAMES_PER_TOKEN
        ceiling = _CEILING_FRAMES + per_token * text_tokens
        wanted = max(min(spec.generation.max_new_tokens, ceiling), min_new_tokens)
        # Nobody speaks faster than a token in 80 ms: with less room the speech would surely be
        # cut short.
        needed = max(min_new_tokens, min(text_tokens, wanted))
    if room < needed:
        message = f"the text is too long: room for {max(room, 0)} frames, at least {needed} needed"
        raise InvalidRequest(message, param="input", code="string_above_max_length")
    max_new_tokens = min(wanted, room)
    return min(min_new_tokens, max_new_tokens), max_new_tokens


def _with_empty_groups(rows: list[tuple[int, int]], num_code_groups: int) -> np.ndarray:
    array = np.full((len(rows), 1 + num_code_groups), _ABSENT, dtype=np.int32)
    array[:, :2] = rows
    return array


def _merged(default: Sampling, overrides: SamplingOverrides) -> Sampling:
    stated = {name: value for name in _OVERRIDES if (value := getattr(overrides, name)) is not None}
    return dataclasses.replace(default, **stated) if stated else default
