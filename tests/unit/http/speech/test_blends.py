"""Blends of voices as they are written in the field `voice`."""

import pytest

from serve_app.errors import InvalidRequest
from serve_app.http.speech.voice import blend_of


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("Anna Maria", [("Anna Maria", 1.0)]),
        ("a+b", [("a", 1.0), ("b", 1.0)]),
        (" a ( 2 ) + b(0.5) ", [("a", 2.0), ("b", 0.5)]),
        ("a(.25)+a b(1000)", [("a", 0.25), ("a b", 1000.0)]),
        ("a(3)", [("a", 3.0)]),
        ("+".join("abcdefgh"), [(name, 1.0) for name in "abcdefgh"]),
    ],
)
def test_a_blend_names_voices_and_weights(written, parts):
    assert blend_of(written) == parts


@pytest.mark.parametrize(
    "written",
    [
        "a+", "+", "(2)", " (2)+a", "a(2", "a)2(", "a(2)(3)", "a(x)", "a(-1)", "a(0)", "a(1001)",
        "a(1e3)", "a(1.)", "a(2)b", "a(nan)", "+".join("abcdefghi"),
        "+".join("abcdefghijklmnopqrstuvwxyz"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused(written):
    with pytest.raises(InvalidRequest) as refused:
        blend_of(written)
    assert refused.value.param == "voice"


@pytest.mark.parametrize("between", [" ", "a ", "1", ".", "("])
def test_it_is_read_or_refused_at_once_however_long_it_is(between):
    """Spaces, once: a name of a kilobyte held up the audio of everybody for minutes."""
    for written in (
        f"x{between * 100_000}y(",
        f"x({between * 100_000}",
        f"x(1){between * 100_000}y",
    ):
        with pytest.raises(InvalidRequest):
            blend_of(written)
