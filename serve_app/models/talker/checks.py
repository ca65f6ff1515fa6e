"""What reaches the engine can be computed: checked here, on the event loop that asks for it.

Inside a step of the engine an index out of bounds, or a value that fits no tensor, would cost every
stream of the step; on a GPU, the process.
"""

import math
from functools import cache
from typing import Final

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.talker.runtime import TalkerPrompt
from serve_app.types import LARGEST_SPEAKER_VALUE, Prompt, Sampling

_INT64: Final = range(-(2**63), 2**63)


def check_work(work: TalkerPrompt, spec: ModelSpec, max_model_len: int) -> None:
    """Refuse what the engine of `spec`, with so many positions per request, cannot compute.

    Raises:
        InvalidRequest: names the field.
    """
    prompt, done = work.prompt, work.done
    texts, rest = spec.talker.text_vocab_size, spec.code_predictor.vocab_size
    num_rest = spec.talker.num_code_groups - 1
    _check_ids(prompt.rows, _sizes(num_rest, rest, texts, spec.talker.vocab_size), "input", -1)
    _check_ids(done, _sizes(num_rest, rest, spec.talker.num_codes), "done", 0)
    _check_ids(prompt.trailing_text[:, None], _sizes(0, 0, texts), "input", 0)
    if prompt.pad_text_id not in range(texts):
        raise InvalidRequest(f"no text has the id {prompt.pad_text_id}", "input")
    _check_speaker(prompt, spec.talker.transformer.hidden_size)
    if not 0 < len(prompt.rows) <= max_model_len - prompt.max_new_tokens:
        raise InvalidRequest(
            f"{len(prompt.rows)} prompt rows and {prompt.max_new_tokens} frames are not within"
            f" {max_model_len} positions",
            "input",
            "string_above_max_length",
        )
    if not 0 <= prompt.min_new_tokens <= prompt.max_new_tokens:
        raise InvalidRequest(
            f"at least {prompt.min_new_tokens} and at most {prompt.max_new_tokens} frames",
            "min_new_tokens",
        )
    if max(len(prompt.trailing_text), len(done)) > prompt.max_new_tokens:
        raise InvalidRequest(
            f"{len(prompt.trailing_text)} text ids and {len(done)} done frames for"
            f" {prompt.max_new_tokens} frames",
            "max_new_tokens",
        )
    if prompt.seed not in _INT64:
        raise InvalidRequest(f"the seed {prompt.seed} is no 64-bit integer", "seed")
    _check_sampling(prompt.talker)
    _check_sampling(prompt.subtalker)


@cache
def _sizes(num_rest: int, rest: int, *first: int) -> np.ndarray:
    """Entries of the tables of some columns, int64: `first`, and `rest` for all that follow."""
    return np.array([*first, *[rest] * num_rest])


def _check_ids(ids: np.ndarray, sizes: np.ndarray, param: str, least: int) -> None:
    """Every column of `ids` ([N, len(sizes)]) indexes its table; -1 is none, where allowed."""
    if ids.ndim != 2 or ids.shape[1] != len(sizes) or ids.dtype.kind not in "iu":
        raise InvalidRequest(
            f"{param}: integers [T, {len(sizes)}] expected, got {ids.dtype} {list(ids.shape)}",
            param,
        )
    if len(ids) and ((ids < least) | (ids >= sizes)).any():
        raise InvalidRequest(f"{param}: an id is outside of its table", param)


def _check_speaker(prompt: Prompt, hidden_size: int) -> None:
    """A cloned voice's vector fits the talker and has a row that no code is in."""
    vector, position = prompt.speaker_vector, prompt.speaker_position
    if vector is None:
        return
    # False of NaN as well.
    if vector.shape != (hidden_size,) or not (np.abs(vector) <= LARGEST_SPEAKER_VALUE).all():
        raise InvalidRequest(
            f"a speaker's vector has {hidden_size} numbers up to {LARGEST_SPEAKER_VALUE:g}", "voice"
        )
    if not 0 <= position < len(prompt.rows) or prompt.rows[position, 1] >= 0:
        raise InvalidRequest(f"no speaker can stand at position {position}", "voice")


def _check_sampling(sampling: Sampling) -> None:
    numbers = (sampling.temperature, sampling.top_p, sampling.repetition_penalty)
    if not all(map(math.isfinite, numbers)) or sampling.repetition_penalty <= 0:
        raise InvalidRequest(f"no code can be drawn with {sampling}")
    if sampling.top_k not in _INT64:
        raise InvalidRequest(f"top_k {sampling.top_k} is no 64-bit integer", "top_k")
