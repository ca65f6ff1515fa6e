import pytest

from serve_app.errors import InvalidRequest
from serve_app.voices.names import checked_language, checked_name, checked_text, folded, key_of


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Anna", "Anna"),
        ("  Anna   Maria ", "Anna Maria"),
        ("声優さん", "声優さん"),
        ("Łukasz O'Neil-Smith Jr.", "Łukasz O'Neil-Smith Jr."),
        ("हिन्दी", "हिन्दी"),
        ("A\u0301nna", "Ánna"),
        ("7", "7"),
    ],
)
def test_names_of_any_script_are_taken(given, name):
    assert checked_name(given) == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "a" * 65, "../etc/passwd", "..", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "a+b",
        "a(2)", "a[b]", "-rf", "'", "default", "DEFAULT", "voice_" + "0" * 32, "cons_" + "a" * 32,
        "a\u202eb", "a\ud800", "%2e%2e%2f", "a:b", "a;b", "🦊", 7, None, ["a"],
    ],
)  # fmt: skip
def test_what_could_be_a_path_an_id_or_a_blend_is_no_name(name):
    with pytest.raises(InvalidRequest) as caught:
        checked_name(name)
    assert caught.value.param == "name"


def test_the_file_of_a_name_says_nothing_of_it_and_is_the_same_for_what_reads_the_same():
    assert key_of(None, "Anna") == key_of(None, "ＡＮＮＡ ")
    assert key_of(None, "Anna") != key_of("anna", "") != key_of("bob", "anna")
    assert key_of("x", "../..").isalnum()
    assert folded("Straße") == folded("STRASSE")


def test_what_is_far_too_long_is_not_even_normalised():
    heap = "a" + "\u0301\u0316" * 500_000
    assert folded(heap) == heap
    for check in (checked_name, checked_text):
        with pytest.raises(InvalidRequest):
            check(heap, "name")


def test_texts_and_languages_are_checked():
    assert checked_text(" Good\nmorning. ", "ref_text") == "Good\nmorning."
    for wrong in ("a" * 4097, "a\0", "\ud800", 3):
        with pytest.raises(InvalidRequest):
            checked_text(wrong, "ref_text")
    assert checked_language("pt-BR") == "pt-BR"
    for wrong in ("", "e", "en_US", "../x", 3):
        with pytest.raises(InvalidRequest):
            checked_language(wrong)
