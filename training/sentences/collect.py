"""One list of all sentences with their phonemes, from which a plan is drawn."""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from pathlib import Path

from training.plan import words_of
from training.sentences.amounts import Said
from training.sentences.made import made
from training.sentences.phonemes import Espeak
from training.sentences.shipped import prose, wordnet


def sentences(
    folder: Path | None,
    texts: Sequence[Path],
    count: int,
    seed: int,
    known: AbstractSet[str] = frozenset(),
) -> Iterator[tuple[str, Said]]:
    """Yield different sentences, each with the name of its source.

    Args:
        folder: WordNet's.
        texts: files of prose, named by their stem.
        count: how many are made up.
        seed: of those; another seed makes others, for an evaluation.
        known: the words of sentences (`words_of`) that are left out, as what training had.
    """
    seen: set[str] = set()

    def new(source: str, found: Iterable[str]) -> Iterator[tuple[str, Said]]:
        for text in found:
            if text.lower() not in seen and words_of(text) not in known:
                seen.add(text.lower())
                yield source, Said(text, text)

    unknown = (said for said in made(seed) if words_of(said.written) not in known)
    yield from (("made", said) for said in islice(unknown, count))
    if folder is not None:
        yield from new("wordnet", wordnet(folder))
    for file in texts:
        yield from new(file.name.split(".")[0], prose(file))


def known_words(lists: Iterable[Path]) -> set[str]:
    """The words of the sentences in lists that `write` wrote, or in files of a sentence a line."""
    lines = (line for file in lists for line in file.read_text(encoding="utf-8").splitlines())
    return {words_of(line.split("\t")[1] if "\t" in line else line) for line in lines}


def write(found: Iterable[tuple[str, Said]], file: Path) -> int:
    """Write source, text, text as spoken, American and British phonemes; return how many."""
    espeak, count = Espeak(), 0
    with file.open("w", encoding="utf-8") as out:
        for source, said in found:
            ways = (espeak.phonemes(said.spoken, british) for british in (False, True))
            out.write("\t".join((source, said.written, said.spoken, *ways)) + "\n")
            count += 1
    return count
