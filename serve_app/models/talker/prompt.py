"""SpeechRequest -> Prompt: the rows that the talker reads, and the text it is fed later.

A pure function of the request and the checkpoint's facts. The layout is the reference's, row by row
(tests/parity/test_prompts.py): instructions, role, prefix, body.
"""

import dataclasses
from typing import Final

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.types import Prompt, Sampling, SamplingOverrides, SpeechRequest

# Runaway guard: some sampled requests never reach the EOS. 25 frames are two seconds for each
# text token, several times slower than slow speech (about 4 frames a token in English); 60 frames
# leave room for silence around a word.
_CEILING_FRAMES: Final = 60
_CEILING_FRAMES_PER_TOKEN: Final = 25

_ABSENT: Final = -1


def build_prompt(
    request: SpeechRequest, spec: ModelSpec, tokenizer: TextTokenizer, max_model_len: int
) -> Prompt:
    """Lay out one request for the talker of `spec`.

    Args:
        request: `voice` None means no speaker row; names of voices and languages are
            case-insensitive.
        spec: the checkpoint's facts.
        tokenizer: the checkpoint's text tokenizer.
        max_model_len: positions the talker's engine has for prompt and frames together.

    Raises:
        InvalidRequest: unknown voice or language, empty text, control strings, a text that does
            not fit, or a checkpoint for voice cloning.

    Source: generate() and the generate_* wrappers of QwenLM/Qwen3-TTS.
    """
    if spec.task == "base":
        # A voice clone adds a speaker_vector and, in context, the rows of the reference's text
        # and codes.
        raise InvalidRequest(
            f"model {request.model!r} speaks only with cloned voices, which this server does not"
            " offer yet; use a CustomVoice or VoiceDesign checkpoint",
            param="model",
        )
    speaker = _speaker(request, spec)
    language_id = _language_id(request, speaker, spec)
    role, text = _target_ids(request.text, spec, tokenizer)
    instructions = _instruction_ids(request.instructions, spec, tokenizer)
    codec = _codec_ids(language_id, speaker, spec)

    rows = [(text_id, _ABSENT) for text_id in (*instructions, *role)]
    prefix_texts = [spec.text.tts_pad_id] * (len(codec) - 2) + [spec.text.tts_bos_id]
    rows += zip(prefix_texts, codec[:-1], strict=True)
    if request.streaming_text:
        rows.append((text[0], codec[-1]))
        trailing = [*text[1:], spec.text.tts_eos_id]
    else:
        rows += [(text_id, spec.talker.codec_pad_id) for text_id in (*text, spec.text.tts_eos_id)]
        rows.append((spec.text.tts_pad_id, codec[-1]))
        trailing = []

    room = min(max_model_len, spec.talker.max_position_embeddings) - len(rows)
    min_new_tokens, max_new_tokens = _length_limits(request, spec, len(text), room)
    return Prompt(
        request_id=request.request_id,
        rows=_with_empty_groups(rows, spec.talker.num_code_groups),
        # Text beyond the last frame is never read.
        trailing_text=np.array(trailing[:max_new_tokens], dtype=np.int32),
        pad_text_id=spec.text.tts_pad_id,
        talker=_merged(spec.generation.talker, request.talker),
        subtalker=_merged(spec.generation.subtalker, request.subtalker),
        seed=request.seed,
        min_new_tokens=min_new_tokens,
        max_new_tokens=max_new_tokens,
    )


def _speaker(request: SpeechRequest, spec: ModelSpec) -> str | None:
    if request.voice is None:
        return None
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


def _codec_ids(language_id: int | None, speaker: str | None, spec: ModelSpec) -> list[int]:
    """Return the prefix's group-0 ids, the last of which belongs to the body."""
    talker = spec.talker
    if language_id is None:
        ids = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
    else:
        ids = [
            talker.codec_think_id,
            talker.codec_think_bos_id,
            language_id,
            talker.codec_think_eos_id,
        ]
    if speaker is not None:
        ids.append(talker.speaker_ids[speaker])
    return [*ids, talker.codec_pad_id, talker.codec_bos_id]


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
        ceiling = _CEILING_FRAMES + _CEILING_FRAMES_PER_TOKEN * text_tokens
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
    names = [field.name for field in dataclasses.fields(overrides)]
    stated = {name: value for name in names if (value := getattr(overrides, name)) is not None}
    return dataclasses.replace(default, **stated) if stated else default
