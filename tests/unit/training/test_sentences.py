"""What the teacher is given to say: made sentences, WordNet's, and their phonemes."""

import random
from itertools import islice
from pathlib import Path

import pytest

from training.sentences.amounts import AMOUNTS, Said
from training.sentences.collect import known_words, sentences
from training.sentences.made import made
from training.sentences.patterns import PATTERNS
from training.sentences.phonemes import LETTERS, ids_of, letters_of
from training.sentences.words import WORDS

_ENTRY = "03600977 06 n 02 {} 0 kayak 0 001 @ 02858304 n 0000 | {}  \n"


def test_made_sentences_are_different_and_follow_from_the_seed() -> None:
    first = list(islice(made(seed=1), 500))
    assert first == list(islice(made(seed=1), 500))
    assert len({said.written for said in first}) == 500
    assert {said.written for said in first}.isdisjoint(
        said.written for said in islice(made(seed=2), 20) if len(said.written) > 60
    )
    assert all(not set("{}0123456789$%@") & set(said.spoken) for said in first)
    assert all(said.written[0].isupper() or not said.written[0].isalpha() for said in first)


def test_every_slot_of_a_pattern_has_a_filler() -> None:
    slots = {part for pattern in PATTERNS for part in pattern.split("{")[1:]}
    assert {slot.partition("}")[0] for slot in slots} <= {*WORDS, *AMOUNTS}


@pytest.mark.parametrize("name", sorted(AMOUNTS))
def test_amounts_are_read_out_without_signs(name: str) -> None:
    rng = random.Random(0)
    for said in (AMOUNTS[name](rng) for _ in range(200)):
        assert isinstance(said, Said)
        assert said.spoken.replace(" ", "").replace(",", "").replace("'", "").isalpha(), said


def test_wordnet_gives_examples_and_definitions_that_read_as_they_are_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "data.noun").write_text(
        "  1 This is a licence. | it is no entry\n"
        + _ENTRY.format("canoe", 'small and light boat; "he paddled a canoe across the lake"')
        + _ENTRY.format("oar", "an implement used to propel a boat (in water)")
        + _ENTRY.format("elm", "a genus of trees")
        + _ENTRY.format("ohm", 'a unit; "it had 20 ohms, i.e. few"')
    )
    prose = tmp_path / "book.txt"
    prose.write_text("Call me\nanything. It was 1850, was it not? No it was not!\n\n| a | b |\n")
    found = {(source, said.written) for source, said in sentences(tmp_path, [prose], 0, seed=1)}
    assert found == {
        ("wordnet", "He paddled a canoe across the lake."),
        ("wordnet", "An oar is an implement used to propel a boat."),
        ("wordnet", "An ohm is a unit."),
        ("book", "Call me anything."),
        ("book", "No it was not!"),
    }


def test_what_other_lists_have_is_left_out(tmp_path: Path) -> None:
    prose, known, plain = tmp_path / "book.txt", tmp_path / "list.tsv", tmp_path / "plain.txt"
    prose.write_text("Call me anything. No it was not! It rained all day.\n")
    first = [said.written for said in islice(made(seed=3), 20)]
    known.write_text("book\tcall me anything\tCall me anything.\tx\ty\n")
    plain.write_text("\n".join([*first[:10], "no, it was not"]))
    words = known_words([known, plain])
    found = [said.written for _, said in sentences(None, [prose], 10, seed=3, known=words)]
    assert found == [*first[10:], "It rained all day."]


@pytest.mark.parametrize(
    ("ipa", "british", "letters"),
    [
        ("hɐlˈo^ʊ", False, "həlˈO"),
        ("hɐlˈə^ʊ", True, "həlˈQ"),
        ("d^ʒˈʌd^ʒ", False, "ʤˈʌʤ"),
        ("wˈɔːɾɚ", False, "wˈɔTəɹ"),
        ("nˈɜːs", True, "nˈɜːs"),
        ("ɪnðə bˈɒks", True, "ɪn ðə bˈɒks"),
        ("mˈa^ɪl", True, "mˈIl"),
    ],
)
def test_ipa_becomes_the_teachers_letters(ipa: str, british: bool, letters: str) -> None:
    assert letters_of(ipa, british) == letters
    assert len(ids_of(letters)) == len(letters)
    assert len(set(LETTERS.values())) == len(LETTERS)
