"""A spoken sentence as the rows that the talker reads, in both text modes.

Each position is a text row plus a codec row, either of which may be absent; a frame's codec row is
the sum over its groups. The server and the reference build the same rows from a request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

ABSENT: Final = -1


@dataclass(frozen=True)
class PromptIds:
    """Control ids, from config.json."""

    role: tuple[int, int, int]
    tts_pad: int
    tts_bos: int
    tts_eos: int
    codec_pad: int
    codec_bos: int
    codec_eos: int
    with_language: tuple[int, int, int, int]
    without_language: tuple[int, int, int]
    speakers: Mapping[str, int]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], newline: int) -> "PromptIds":
        """Read them; `newline` is the text id of a line feed."""
        talker = config["talker_config"]
        begin, end = talker["codec_think_bos_id"], talker["codec_think_eos_id"]
        english = talker["codec_language_id"]["english"]
        return cls(
            role=(config["im_start_token_id"], config["assistant_token_id"], newline),
            tts_pad=config["tts_pad_token_id"],
            tts_bos=config["tts_bos_token_id"],
            tts_eos=config["tts_eos_token_id"],
            codec_pad=talker["codec_pad_id"],
            codec_bos=talker["codec_bos_id"],
            codec_eos=talker["codec_eos_token_id"],
            with_language=(talker["codec_think_id"], begin, english, end),
            without_language=(talker["codec_nothink_id"], begin, end),
            speakers=talker["spk_id"],
        )


@dataclass(frozen=True)
class Rows:
    """One sentence, L positions.

    text: int64 [L], text ids. codes: int64 [L, groups]; control ids stand in group 0. target: int64
    [L], the code of group 0 (or the end) that each position leads to. -1 where there is none.
    frame: int64 [L], the frame that each position leads to.
    """

    text: np.ndarray
    codes: np.ndarray
    target: np.ndarray
    frame: np.ndarray


def lay_out(
    ids: PromptIds,
    text: Sequence[int],
    frames: np.ndarray,
    speaker: str,
    *,
    streaming: bool,
    language: bool,
) -> Rows:
    """Lay one sentence out.

    Args:
        ids: control ids of the checkpoint.
        text: ids of the sentence alone.
        frames: codes, int64 [T, groups].
        speaker: its name.
        streaming: one text row per frame, or the whole text before the first frame.
        language: whether the language is named.
    """
    prefix = [*(ids.with_language if language else ids.without_language), ids.speakers[speaker]]
    texts = [*ids.role, *[ids.tts_pad] * len(prefix), ids.tts_bos]
    controls = [ABSENT] * 3 + prefix + [ids.codec_pad]
    if streaming:
        texts.append(text[0])
        trailing = [*text[1:], ids.tts_eos]
    else:
        texts += [*text, ids.tts_eos, ids.tts_pad]
        controls += [ids.codec_pad] * (len(text) + 1)
        trailing = []
    controls.append(ids.codec_bos)
    start, count = len(texts), len(frames)
    trailing = (trailing + [ids.tts_pad] * count)[:count]
    length = start + count
    codes = np.full((length, frames.shape[1]), ABSENT, np.int64)
    codes[:start, 0] = controls
    codes[start:] = frames
    target, frame = (np.full(length, ABSENT, np.int64) for _ in range(2))
    target[start - 1 :] = [*frames[:, 0], ids.codec_eos]
    frame[start - 1 : -1] = np.arange(count)
    return Rows(np.array([*texts, *trailing], np.int64), codes, target, frame)
