"""A sentence laid out for the talker: model spec 2.2 and 2.3."""

import numpy as np
import pytest

from training.layout import ABSENT, PromptIds, Rows, lay_out

_IDS = PromptIds(
    role=(1, 2, 3),
    tts_pad=10,
    tts_bos=11,
    tts_eos=12,
    codec_pad=300,
    codec_bos=301,
    codec_eos=302,
    with_language=(304, 306, 350, 307),
    without_language=(305, 306, 307),
    speakers={"heart": 360},
)
_FRAMES = np.arange(8).reshape(4, 2)
_TEXT = [20, 21]


def _lay_out(*, streaming: bool, language: bool = True) -> Rows:
    return lay_out(_IDS, _TEXT, _FRAMES, "heart", streaming=streaming, language=language)


def test_whole_text_stands_before_the_frames() -> None:
    rows = _lay_out(streaming=False)
    assert rows.text.tolist() == [1, 2, 3, *[10] * 5, 11, 20, 21, 12, 10, *[10] * 4]
    controls = [ABSENT] * 3 + [304, 306, 350, 307, 360, 300] + [300] * 3 + [301]
    assert rows.codes[:, 0].tolist() == [*controls, 0, 2, 4, 6]


def test_streaming_text_comes_along_with_the_frames() -> None:
    rows = _lay_out(streaming=True, language=False)
    assert rows.text.tolist() == [1, 2, 3, *[10] * 4, 11, 20, 21, 12, 10, 10]
    assert rows.codes[:, 0].tolist() == [ABSENT] * 3 + [305, 306, 307, 360, 300, 301, 0, 2, 4, 6]


@pytest.mark.parametrize("streaming", [False, True])
def test_each_position_leads_to_the_next_frame_and_the_last_to_the_end(streaming: bool) -> None:
    rows = _lay_out(streaming=streaming)
    assert rows.target[-5:].tolist() == [0, 2, 4, 6, 302]
    assert rows.frame[-5:].tolist() == [0, 1, 2, 3, ABSENT]
    assert (rows.target[:-5] == ABSENT).all()
