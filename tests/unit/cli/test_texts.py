import os
import threading

import pytest

from serve_app.cli.texts import as_it_comes, cut


def test_a_short_text_is_one_piece() -> None:
    assert list(cut("  One line\nand two.  ")) == ["One line\nand two."]
    assert list(cut(" \n ")) == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A b c.\n\nD e f. G h", ["A b c.", "D e f. G h"]),
        ("A b c, d. E f g h", ["A b c, d.", "E f g h"]),
        ("abcdefg hijklmn", ["abcdefg", "hijklmn"]),
        ("abcdefghijklmno", ["abcdefghij", "klmno"]),
    ],
)
def test_a_long_one_is_cut_where_it_is_heard_least(text: str, pieces: list[str]) -> None:
    assert list(cut(text, limit=10)) == pieces


def test_no_word_is_lost() -> None:
    text = " ".join(f"word{number}." for number in range(5000))
    assert " ".join(cut(text)) == text


def test_lines_that_come_together_are_spoken_together_and_others_as_they_come() -> None:
    read, write = os.pipe()
    spoken = as_it_comes(read)
    os.write(write, "Zwölf\nBoxkämpfer\nja".encode())
    assert next(spoken) == "Zwölf\nBoxkämpfer"
    os.write(write, b"gen\n")
    assert next(spoken) == "jagen"
    threading.Timer(0.05, os.close, [write]).start()
    os.write(write, b"Viktor")
    assert list(spoken) == ["Viktor"]
    os.close(read)
