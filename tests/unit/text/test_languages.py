import pytest

from serve_app.text.languages import (
    code_of_text,
    language_code,
    language_name,
    letters_beyond,
    split_model_name,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("english", "english"),
        (" English ", "english"),
        ("en", "english"),
        ("EN-us", "english"),
        ("eng", "english"),
        ("zh", "chinese"),
        ("zh_Hant_TW", "chinese"),
        ("cmn", "chinese"),
        ("中文", "chinese"),
        ("pt-BR", "portuguese"),
        ("deu", "german"),
        ("ger", "german"),
        ("Español", "spanish"),
        ("jpn", "japanese"),
        ("AUTO", "auto"),
        ("yue", None),
        ("pl", None),
        ("klingon", None),
        ("", None),
        ("-", None),
        ("../..", None),
    ],
)
def test_names_codes_and_tags_lead_to_the_name_of_the_checkpoints(name, expected):
    assert language_name(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tts-1-es", ("tts-1", "spanish")),
        ("tts-1-hd-fr", ("tts-1-hd", "french")),
        ("tts-1-pt-BR", ("tts-1", "portuguese")),
        ("tts-1-PT-br", ("tts-1", "portuguese")),
        ("tts-1-hd", ("tts-1-hd", None)),
        ("tts-1", ("tts-1", None)),
        ("tts-1-auto", ("tts-1-auto", None)),
        ("tts-1-pl", ("tts-1-pl", None)),
        ("es", ("es", None)),
        ("Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice", ("Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice", None)),
    ],
)
def test_a_model_name_may_end_in_a_language(name, expected):
    assert split_model_name(name) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("german", "你好", "de"),
        ("auto", "你好。", "zh"),
        ("auto", "今日は。", "ja"),
        ("auto", "안녕", "ko"),
        ("auto", "Привет", "ru"),
        ("auto", "Hallo", "en"),
        ("beijing_dialect", "你好", "zh"),
    ],
)
def test_a_script_decides_where_no_language_is_stated(language, text, expected):
    assert code_of_text(language, text) == expected


def test_every_name_has_one_code():
    assert language_code("chinese") == "zh"
    assert language_code("Mandarin") == "zh"


@pytest.mark.parametrize(
    ("text", "beyond", "number"),
    [
        ("Été, 2026!", {}, 3),
        ("ß", {}, 1),
        ("猫 and 猫", {"猫": 2}, 5),
        ("Мир", {"М": 1, "и": 1, "р": 1}, 3),
        ("... 🙂 5", {}, 0),
    ],
)
def test_letters_are_told_by_their_base(text, beyond, number):
    assert letters_beyond("abcdefghijklmnopqrstuvwxyz", text) == (beyond, number)
